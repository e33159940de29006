"""Batches: which image and which random draws make one is a function of the seed and its number alone."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fcmae.data.dataset import ImageDataset, Loaded
from fcmae.data.decode import UnreadableImageError
from fcmae.data.order import announced, kept_generators, seed_generators, seed_of, shuffled_passes
from fcmae.data.transforms.crops import Cut, RandomCut
from fcmae.data.transforms.on_device import DeviceCrops, pack
from fcmae.data.watch import Reading, leave_signals_to_parent
from fcmae.errors import InputError

Images = TypeVar("Images")

_CPU = torch.device("cpu")


class Batch(NamedTuple, Generic[Images]):
    """Images ready for the network, and what could not be read on the way."""

    images: Images
    """[B, C, H, W], float32, normalised; of a transform that makes named tuples, such as views or an image
    and its annotations, one with B in front of the tensors and a list of B for anything else."""
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
    dataset: ImageDataset[Loaded],
    transform: Callable[[Loaded], Images],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    repeats: int = 1,
    timeout: float = 0.0,
    device: torch.device = _CPU,
) -> Iterator[Batch[Images]]:
    """Batches number `start` to `stop - 1` of an endless sequence of shuffled passes over the dataset.

    Batch i is a function of (dataset, transform, seed, i): the workers change nothing, and a run that starts
    at i sees what the uninterrupted run saw. Position p of the sequence shows image `q = p // repeats`, entry
    `q % len(dataset)` of permutation `q // len(dataset)`, with random draws seeded by (seed, p); batch i of a
    rank is the `batch_size` positions from `(i * world_size + rank) * batch_size` on. An unreadable image is
    replaced by the next readable one in the dataset's order.

    Args:
        dataset: Images; `batch_size` may exceed their number.
        transform: To a tensor or to a named tuple; its tensors have the same shapes for every image. May draw
            from torch's, numpy's and Python's global generators; their states are kept.
        batch_size: Images per rank.
        seed: Of the order and of the transform.
        start: First batch.
        stop: Batch after the last one.
        workers: Processes that decode; 0: this one.
        rank: Of this process.
        world_size: Processes that share each batch number.
        repeats: Positions in a row that show one image, decoded once; a divisor of `batch_size`.
        timeout: Seconds to wait for a batch from the workers; 0: for ever.
        device: Where the images of a transform that only draws crops, a `RandomCut`, are made, and stay.
    Raises:
        InputError: no image is readable, one has channels that cannot become the network's, or the workers
            deliver nothing in time.
    """
    if batch_size % repeats:
        raise InputError(
            f"data.repeats: expected a divisor of train.batch_size {batch_size}, got {repeats}. "
            "Change one of both."
        )
    order = shuffled_passes(
        len(dataset),
        batch_size=batch_size,
        seed=seed,
        start=start,
        stop=stop,
        rank=rank,
        world_size=world_size,
        repeats=repeats,
        window=dataset.window,
    )
    if dataset.window is not None:
        ahead = dataset.window.size * repeats // (batch_size * world_size) + 1
        order = announced(order, dataset.expect, ahead=ahead)
    samples = _TrainingSamples(dataset, transform, Reading(dataset, workers), seed=seed, repeats=repeats)
    batches = _batches(samples, order, workers=workers, timeout=timeout)
    if not isinstance(transform, RandomCut):
        return batches
    images_of = DeviceCrops(transform.config, device)
    return (batch._replace(images=images_of(batch.images)) for batch in batches)


def evaluation_batches(
    dataset: ImageDataset[Loaded],
    transform: Callable[[Loaded], Images],
    *,
    batch_size: int,
    workers: int,
    timeout: float = 0.0,
) -> Iterator[Batch[Images]]:
    """Batches of every image once, in order; an unreadable one is left out and named in `Batch.bad`.

    Every batch holds at least one image, and at most `batch_size`.

    Raises:
        InputError: as `training_batches`.
    """
    indices = range(len(dataset))
    order = (indices[first : first + batch_size] for first in range(0, len(dataset), batch_size))
    held: Batch | None = None
    samples = _EvaluationSamples(dataset, transform, Reading(dataset, workers))
    for batch in _batches(samples, order, workers=workers, timeout=timeout):
        if held is None:
            held = batch
        elif batch.size and held.size:
            yield held
            held = batch
        else:  # one of both is empty: its names go with the other's images
            held = (batch if batch.size else held)._replace(bad=held.bad + batch.bad)
    if held is not None:
        if not held.size:
            raise _none_readable(held.bad)
        yield held


def _none_readable(bad: list[str]) -> InputError:
    return InputError(
        f"data: expected at least one readable image, got {len(bad)} unreadable; the first is {bad[0]}. "
        f"Check the files."
    )


@dataclass(frozen=True)
class _Sample:
    image: Any
    """What the transform made; None: unreadable."""
    label: int | None
    bad: list[str]


class _Samples(Dataset[list[_Sample] | InputError]):
    """What the loader's processes make; an InputError comes back as a value, to keep its message."""

    def __init__(self, dataset: ImageDataset, transform: Callable[[Any], Any], reading: Reading) -> None:
        self._dataset = dataset
        self._transform = transform
        self.reading = reading

    def _load(self, index: int) -> Any:
        with self.reading.note(index):
            return self._dataset.load(index)


class _TrainingSamples(_Samples):
    def __init__(
        self,
        dataset: ImageDataset,
        transform: Callable[[Any], Any],
        reading: Reading,
        *,
        seed: int,
        repeats: int,
    ) -> None:
        super().__init__(dataset, transform, reading)
        self._seed = seed
        self._repeats = repeats

    def __getitems__(self, places: list[tuple[int, int]]) -> list[list[_Sample] | InputError]:
        """What the loader asks for: a batch."""
        with kept_generators():
            return [self._group(*place) for place in places]

    def _group(self, first: int, wanted: int) -> list[_Sample] | InputError:
        count = len(self._dataset)
        bad: list[str] = []
        for offset in range(count):
            index = (wanted + offset) % count
            try:
                image = self._load(index)
            except UnreadableImageError as error:
                bad.append(str(error))
                continue
            except InputError as error:
                return error
            label = _label(self._dataset, index)
            return [
                _Sample(self._draw(image, position), label, bad if position == first else [])
                for position in range(first, first + self._repeats)
            ]
        return _none_readable(bad)

    def _draw(self, image: Any, position: int) -> Any:
        seed_generators(seed_of("sample", self._seed, position))
        return self._transform(image)


class _EvaluationSamples(_Samples):
    def __getitem__(self, index: int) -> list[_Sample] | InputError:
        try:
            image = self._load(index)
        except UnreadableImageError as error:
            return [_Sample(None, None, [str(error)])]
        except InputError as error:
            return error
        return [_Sample(self._transform(image), _label(self._dataset, index), [])]


def _label(dataset: ImageDataset, index: int) -> int | None:
    return None if dataset.labels is None else dataset.labels[index]


def _collate(groups: list[list[_Sample] | InputError]) -> Batch | InputError:
    images: list[Any] = []
    labels: list[int] = []
    bad: list[str] = []
    for group in groups:
        if isinstance(group, InputError):
            return group
        for sample in group:
            bad += sample.bad
            if sample.image is not None:
                images.append(sample.image)
            if sample.label is not None:
                labels.append(sample.label)
    return Batch(_stack(images) if images else torch.empty(0), torch.tensor(labels) if labels else None, bad)


def _stack(images: list[Any]) -> Any:
    if isinstance(images[0], Cut):
        return pack(images)
    # Unlike torch.stack, default_collate writes a loader process' batch into shared memory at once.
    if not isinstance(images[0], tuple):
        return default_collate(images)
    parts = (list(part) for part in zip(*images, strict=True))
    return type(images[0])(
        *(default_collate(part) if isinstance(part[0], Tensor) else part for part in parts)
    )


def _batches(samples: _Samples, order: Iterable, *, workers: int, timeout: float) -> Iterator[Batch]:
    loader = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        timeout=timeout if workers else 0,
        worker_init_fn=leave_signals_to_parent,
        # The loader seeds its workers from this; without it, from the global generator, which must not move.
        generator=torch.Generator().manual_seed(0),
    )
    try:
        for batch in loader:
            # Raised in a worker, it would come back with a traceback as its message; so it comes as a value.
            if isinstance(batch, InputError):
                raise batch
            yield batch
    except RuntimeError as error:
        clear = samples.reading.explain(error, timeout=timeout)
        if clear is None:
            raise
        raise clear from error
