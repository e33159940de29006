"""Which image stands where, and each place's random numbers: functions of the seed and the place alone."""

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Window(NamedTuple):
    """What keeps a shuffled pass near a walk through files that hold many images each."""

    shard: np.ndarray
    """Of each image, the number of its file, [N]."""
    size: int
    """Places by which an image may come earlier or later than in the walk."""


def seed_of(*parts: object) -> int:
    """64 bits that depend on every part; unlike `hash`, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def shuffled_passes(
    count: int,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rank: int,
    world_size: int,
    repeats: int,
    window: Window | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """(first position, index) of each image of each batch."""
    current = -1
    permutation = torch.empty(0, dtype=torch.int64)
    for number in range(start, stop):
        first = (number * world_size + rank) * batch_size
        batch: list[tuple[int, int]] = []
        for position in range(first, first + batch_size, repeats):
            epoch, place = divmod(position // repeats, count)
            if epoch != current:
                generator = torch.Generator().manual_seed(seed_of("order", seed, epoch))
                permutation = _shuffled(count, generator, window)
                current = epoch
            batch.append((position, int(permutation[place])))
        yield batch


def _shuffled(count: int, generator: torch.Generator, window: Window | None) -> Tensor:
    if window is None:
        return torch.randperm(count, generator=generator)
    shards = torch.from_numpy(window.shard)
    place = torch.randperm(int(shards.max()) + 1, generator=generator)
    walk = torch.argsort(place[shards.long()], stable=True)
    # A sort by place plus a draw below `size` is what a shuffle buffer does, without a walk to the present
    # place: nobody overtakes an image that is `size` places ahead.
    draws = torch.rand(count, generator=generator, dtype=torch.float64) * window.size
    return walk[torch.argsort(torch.arange(count) + draws, stable=True)]


def announced(
    order: Iterable[list[tuple[int, int]]], expect: Callable[[list[int]], object], *, ahead: int
) -> Iterator[list[tuple[int, int]]]:
    """The batches of `order`; `expect` learns the indices of each when `ahead` others are still due."""
    due: deque[list[tuple[int, int]]] = deque()
    for batch in order:
        expect([index for _, index in batch])
        due.append(batch)
        if len(due) > ahead:
            yield due.popleft()
    yield from due


def seed_generators(seed: int) -> None:
    """Seeds torch's CPU generator, numpy's and Python's: timm's augmentations draw from all three."""
    # Not torch.manual_seed: it would also restart the GPU's generator, which the network's drop path uses.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Puts the states of the three back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
