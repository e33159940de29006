"""Batches: which image and which random draws make one is a function of the seed and its number alone."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fcmae.data.decode import UnreadableImageError
from fcmae.data.sources import ImageDataset
from fcmae.data.transforms import Transform
from fcmae.errors import InputError

Images = TypeVar("Images")


class Batch(NamedTuple, Generic[Images]):
    """Images ready for the network, and what could not be read on the way."""

    images: Images
    """[B, C, H, W], float32, normalised; of a transform that makes views, the views with B in front."""
    labels: Tensor | None
    """[B], int64; None: unlabelled."""
    bad: list[str]
    """`name: reason` of each unreadable image met while this batch was made."""

    @property
    def size(self) -> int:
        """Images, B."""
        first = self.images[0] if isinstance(self.images, tuple) else self.images
        return len(first)  # pyright: ignore[reportArgumentType]


def training_batches(
    dataset: ImageDataset,
    transform: Callable[[Tensor], Images],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch[Images]]:
    """Batches number `start` to `stop - 1` of an endless sequence of shuffled passes over the dataset.

    Batch i is a function of (dataset, transform, seed, i): the workers change nothing, and a run that starts
    at i sees what the uninterrupted run saw. Position p of the sequence is entry `p % len(dataset)` of
    permutation `p // len(dataset)`, with random draws seeded by (seed, p); batch i of a rank is the
    `batch_size` positions from `(i * world_size + rank) * batch_size` on. An unreadable image is replaced by
    the next readable one in the dataset's order.

    Args:
        dataset: Images; `batch_size` may exceed their number.
        transform: To a tensor or to a named tuple of tensors, of the same shapes for every image. May draw
            from torch's, numpy's and Python's global generators; their states are kept.
        batch_size: Images per rank.
        seed: Of the order and of the transform.
        start: First batch.
        stop: Batch after the last one.
        workers: Processes that decode; 0: this one.
        rank: Of this process.
        world_size: Processes that share each batch number.
    Raises:
        InputError: no image is readable, or one has channels that cannot become the network's.
    """
    order = _shuffled_passes(
        len(dataset),
        batch_size=batch_size,
        seed=seed,
        start=start,
        stop=stop,
        rank=rank,
        world_size=world_size,
    )
    return _batches(_TrainingSamples(dataset, transform, seed), order, workers)


def evaluation_batches(
    dataset: ImageDataset, transform: Transform, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Batches of every image once, in order; an unreadable one is left out and named in `Batch.bad`.

    Every batch holds at least one image, and at most `batch_size`.

    Raises:
        InputError: no image is readable, or one has channels that cannot become the network's.
    """
    indices = range(len(dataset))
    order = (indices[first : first + batch_size] for first in range(0, len(dataset), batch_size))
    held: Batch | None = None
    for batch in _batches(_EvaluationSamples(dataset, transform), order, workers):
        if held is None:
            held = batch
        elif len(batch.images) and len(held.images):
            yield held
            held = batch
        else:  # one of both is empty: its names go with the other's images
            held = (batch if len(batch.images) else held)._replace(bad=held.bad + batch.bad)
    if held is not None:
        if not len(held.images):
            raise _none_readable(held.bad)
        yield held


def _none_readable(bad: list[str]) -> InputError:
    return InputError(
        f"data: expected at least one readable image, got {len(bad)} unreadable; the first is {bad[0]}. "
        f"Check the files."
    )


def _seed_of(*parts: object) -> int:
    """64 bits that depend on every part; unlike `hash`, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _shuffled_passes(
    count: int, *, batch_size: int, seed: int, start: int, stop: int, rank: int, world_size: int
) -> Iterator[list[tuple[int, int]]]:
    """(position, index) of each image of each batch."""
    current = -1
    permutation = torch.empty(0, dtype=torch.int64)
    for number in range(start, stop):
        first = (number * world_size + rank) * batch_size
        batch: list[tuple[int, int]] = []
        for position in range(first, first + batch_size):
            epoch, place = divmod(position, count)
            if epoch != current:
                generator = torch.Generator().manual_seed(_seed_of("order", seed, epoch))
                permutation = torch.randperm(count, generator=generator)
                current = epoch
            batch.append((position, int(permutation[place])))
        yield batch


@contextmanager
def _random_draws(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator, numpy's and Python's, then puts their states back.

    timm's augmentations draw from all three.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # Not torch.manual_seed: it would also restart the GPU's generator, which the network's drop path uses.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@dataclass(frozen=True)
class _Sample:
    image: Any
    """What the transform made; None: unreadable."""
    label: int | None
    bad: list[str]


class _TrainingSamples(Dataset[_Sample | InputError]):
    def __init__(self, dataset: ImageDataset, transform: Callable[[Tensor], Any], seed: int) -> None:
        self._dataset = dataset
        self._transform = transform
        self._seed = seed

    def __getitem__(self, place: tuple[int, int]) -> _Sample | InputError:
        position, wanted = place
        count = len(self._dataset)
        bad: list[str] = []
        for offset in range(count):
            index = (wanted + offset) % count
            try:
                image = self._dataset.load(index)
            except UnreadableImageError as error:
                bad.append(str(error))
                continue
            except InputError as error:
                return error
            with _random_draws(_seed_of("sample", self._seed, position)):
                return _Sample(self._transform(image), _label(self._dataset, index), bad)
        return _none_readable(bad)


class _EvaluationSamples(Dataset[_Sample | InputError]):
    def __init__(self, dataset: ImageDataset, transform: Transform) -> None:
        self._dataset = dataset
        self._transform = transform

    def __getitem__(self, index: int) -> _Sample | InputError:
        try:
            image = self._dataset.load(index)
        except UnreadableImageError as error:
            return _Sample(None, None, [str(error)])
        except InputError as error:
            return error
        return _Sample(self._transform(image), _label(self._dataset, index), [])


def _label(dataset: ImageDataset, index: int) -> int | None:
    return None if dataset.labels is None else dataset.labels[index]


def _collate(samples: list[_Sample | InputError]) -> Batch | InputError:
    images: list[Any] = []
    labels: list[int] = []
    bad: list[str] = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        bad += sample.bad
        if sample.image is not None:
            images.append(sample.image)
        if sample.label is not None:
            labels.append(sample.label)
    return Batch(_stack(images) if images else torch.empty(0), torch.tensor(labels) if labels else None, bad)


def _stack(images: list[Any]) -> Any:
    if isinstance(images[0], tuple):
        return type(images[0])(*(torch.stack(view) for view in zip(*images, strict=True)))
    return torch.stack(images)


def _batches(samples: Dataset, order: Iterable, workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        # The loader seeds its workers from this; without it, from the global generator, which must not move.
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        # Raised in a worker, it would come back with a traceback as its message; so it comes as a value.
        if isinstance(batch, InputError):
            raise batch
        yield batch
