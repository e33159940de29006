"""Features of all images, extracted once and kept on disk."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fcmae.config import DataConfig
from fcmae.config_io import to_dict
from fcmae.convert.files import read_checkpoint, write_weights
from fcmae.data import Batch, ImageDataset, eval_transform, evaluation_batches, open_dataset
from fcmae.errors import InputError
from fcmae.evaluation.encoders import LoadedEncoder
from fcmae.evaluation.frozen.knn import embed_images

_VERSION = 1  # of what is kept: raised when the same images and weights would give other features
# What decides neither which pixels an encoder sees nor in which order.
_NOT_PIXELS = (
    "root",
    "val_root",
    "val_fraction",
    "labels",
    "labels_per_class",
    "flip",
    "repeats",
    "workers",
    "timeout",
    "max_bad_images",
    "shuffle_buffer",
    "cache_dir",
    "cache_gb",
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The labelled images of one split, and names that are the same wherever the data lies."""

    dataset: ImageDataset
    labels: Tensor
    """int64 [N]."""
    classes: tuple[str, ...]
    names: list[str]
    key: str
    """Of the images and of how they become tensors."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Features of those images of a split that could be read."""

    features: Tensor
    """float32 [M, D]."""
    indices: Tensor
    """int64 [M]: each image's place in the split."""
    labels: Tensor
    """int64 [M]."""


def open_split(config: DataConfig, split: str) -> Split:
    """The labelled images of `train` or `val`.

    Raises:
        InputError: as open_dataset; no classes; or a class without an image to train on.
    """
    assert split in ("train", "val")
    dataset = open_dataset(config, split="train" if split == "train" else "val", labelled=True)
    assert dataset.labels is not None and dataset.classes is not None
    if len(dataset.classes) < 2:
        raise InputError(
            f"data: expected images of at least 2 classes, got {len(dataset.classes)}. Add a class's folder."
        )
    root = config.val_root if split == "val" and config.val_root is not None else config.root
    names, files = _identify(dataset, config.source, root and os.path.expanduser(root))
    sizes = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)]
    pixels = {name: value for name, value in to_dict(config).items() if name not in _NOT_PIXELS}
    digest = hashlib.blake2b(json.dumps([_VERSION, pixels]).encode(), digest_size=16)
    digest.update(json.dumps([names, sizes]).encode())
    return Split(
        dataset=dataset,
        labels=torch.tensor(dataset.labels),
        classes=dataset.classes,
        names=names,
        key=digest.hexdigest(),
    )


def _identify(dataset: ImageDataset, source: str, root: str | None) -> tuple[list[str], list[str]]:
    """Names of the images, the same wherever `root` lies, and the files that hold their pixels."""
    names = [dataset.name_of(index) for index in range(len(dataset))]
    if root is None:  # built in
        return names, []
    if source == "folder":
        return [os.path.relpath(name, root).replace(os.sep, "/") for name in names], names
    containers = dataset.containers()
    return [os.path.basename(name) for name in names] if containers else names, containers


def embed_split(
    encoder: LoadedEncoder,
    split: Split,
    config: DataConfig,
    *,
    cache: Path,
    batch_size: int,
    device: torch.device,
    log: Callable[[str], object] = print,
) -> Embedded:
    """The features of every readable image: from the cache, or extracted and written there.

    The key is a hash of the weights and architecture, of the names, sizes and times of the image files, and
    of the settings that decide their pixels; of anything else changed, the file stays valid. A file is
    written whole or not at all; one that cannot be read is told and replaced.

    Args:
        encoder: Moved to `device` where features are missing.
        split: Which images.
        config: How they become tensors.
        cache: Folder of the features.
        batch_size: Images at once.
        device: To extract on.
        log: Receives a line for each unreadable image or file.
    Raises:
        InputError: more unreadable images than data.max_bad_images, or the cache cannot be written.
    """
    path = cache / f"{encoder.fingerprint}_{split.key}.safetensors"
    kept = _read(path, log)
    if kept is None:
        dataset = Numbered(split.dataset)
        batches = evaluation_batches(
            dataset, eval_transform(config), batch_size=batch_size, workers=config.workers
        )
        encoder.encoder.to(device)
        features, indices = embed_images(encoder.encoder, _few_bad(batches, config.max_bad_images, log))
        kept = {"features": features, "indices": indices}
        write_weights(path, kept, metadata={"encoder": encoder.name}, force=True)
    features, indices = kept["features"], kept["indices"]
    if not bool(features.isfinite().all()):
        raise InputError(
            f"features: expected finite ones of {encoder.name}, got NaN or infinity. "
            "Use an earlier checkpoint."
        )
    return Embedded(features=features, indices=indices, labels=split.labels[indices])


def _read(path: Path, log: Callable[[str], object]) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        return read_checkpoint(path)
    except InputError as error:
        log(f"cache: {error} Extracting again.")
        return None


def _few_bad(batches: Iterator[Batch], most: int, log: Callable[[str], object]) -> Iterator[Batch]:
    """The batches; unreadable images are told, and more than `most` raise InputError."""
    count = 0
    for batch in batches:
        for line in batch.bad:
            log(f"skipped {line}")
        count += len(batch.bad)
        if count > most:
            raise InputError(
                f"data.max_bad_images: expected at most {most} unreadable images, got {count}. "
                "Repair the files, or raise it."
            )
        yield batch


class Numbered(ImageDataset[Tensor]):
    """Images whose labels are their numbers: so a batch tells which images it is without."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset
        self.labels = list(range(len(dataset)))

    def __len__(self) -> int:
        return len(self._dataset)

    def name_of(self, index: int) -> str:
        return self._dataset.name_of(index)

    def load(self, index: int) -> Tensor:
        return self._dataset.load(index)
