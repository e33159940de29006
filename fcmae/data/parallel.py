"""A function over many items in several processes, in order, with a bounded number of results ahead."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Result]:
    """function(item) of each item, in the order of the items.

    Args:
        function: Returns what is wrong with an item: an exception would lose its type on the way.
        items: Any number; none is copied.
        workers: Processes; 0: this one.
    """
    yield from DataLoader(
        _Mapped(function, items),
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        # The loader seeds its workers from this; without it, from the global generator, which must not move.
        generator=torch.Generator().manual_seed(0),
    )


class _Mapped(Dataset[Result], Generic[Item, Result]):
    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._function = function
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Result:
        return self._function(self._items[index])


def _unchanged(result: Result) -> Result:
    return result
