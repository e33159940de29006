"""Where images come from: `open_dataset` finds what the configuration names, and splits it."""

import math
import os
from typing import Literal

from fcmae.config import DataConfig
from fcmae.data.dataset import ImageDataset
from fcmae.data.sources.arrays import open_arrays
from fcmae.data.sources.digits import DigitsDataset
from fcmae.data.sources.folders import FolderDataset, find_images, label_by_folder
from fcmae.data.sources.shard_index import find_shards, read_index
from fcmae.data.sources.shards import ShardDataset
from fcmae.data.sources.splits import hold_out, limit_labels
from fcmae.data.transforms.standard import EVALUATION_ENLARGEMENT
from fcmae.errors import InputError

Split = Literal["train", "val", "all"]


def open_dataset(config: DataConfig, *, split: Split, labelled: bool) -> ImageDataset:
    """The images of `config`; the same call always gives the same images in the same order.

    `all` is every image of `root`, for pretraining. `train` and `val` are fine-tuning's: `root` and
    `val_root`, or without `val_root` a fixed split of `root` by `val_fraction`, each class alike.
    `labels_per_class` limits `train` only.

    Args:
        config: Source, folders and split.
        split: Which images.
        labelled: Whether the class of each image is wanted: its subfolder, its digit, or its entry in
            `config.labels`.
    Raises:
        InputError: a folder is missing, empty or without classes, or the split wants more images than it has.
    """
    val_root = config.val_root
    dataset = _open_root(config, labelled)
    if split == "all":
        return dataset
    if split == "val" and val_root is not None:
        open_ = _open_shards if config.source == "shards" else _open_folder
        return open_(val_root, config, field="data.val_root", labelled=labelled, classes=dataset.classes)

    val_fraction = config.val_fraction if val_root is None else 0.0
    train, val = hold_out(dataset.labels or [0] * len(dataset), val_fraction=val_fraction)
    if split == "val":
        if not val:
            raise InputError(
                f"data.val_fraction: expected a share that holds out at least one of {len(dataset)} images, "
                f"got {config.val_fraction:g}. Raise it, add images, or set --data.val_root=DIR."
            )
        return dataset.subset(sorted(val))
    if config.labels_per_class is not None and dataset.labels is not None and dataset.classes is not None:
        train = limit_labels(train, dataset.labels, dataset.classes, per_class=config.labels_per_class)
    return dataset.subset(sorted(train))


def _open_root(config: DataConfig, labelled: bool) -> ImageDataset:
    if config.source == "digits":
        return DigitsDataset(config.size, in_chans=config.in_chans, labelled=labelled)
    assert config.root is not None  # checked by DataConfig
    if config.source == "arrays":
        return open_arrays(config, labelled=labelled)
    if config.source == "shards":
        return _open_shards(config.root, config, field="data.root", labelled=labelled)
    return _open_folder(config.root, config, field="data.root", labelled=labelled)


def _open_folder(
    root: str, config: DataConfig, *, field: str, labelled: bool, classes: tuple[str, ...] | None = None
) -> FolderDataset:
    root = os.path.expanduser(root)
    paths = find_images(root, field=field)
    labels = None
    if labelled:
        classes, labels = label_by_folder(root, paths, field=field, classes=classes)
    return FolderDataset(
        paths,
        in_chans=config.in_chans,
        min_side=_smallest_useful_side(config),
        labels=labels,
        classes=classes,
    )


def _open_shards(
    root: str, config: DataConfig, *, field: str, labelled: bool, classes: tuple[str, ...] | None = None
) -> ShardDataset:
    shards = find_shards(os.path.expanduser(root), field=field)
    index = read_index(shards)
    own = None
    if labelled:
        readable = index.label[index.size >= 0]
        if len(readable) == 0 or readable.min() < 0:
            raise InputError(
                f"{field}: expected a class (.cls) with every image, got {int((readable < 0).sum())} of "
                f"{len(readable)} without. Shard a folder of class folders."
            )
        own = shards.classes or tuple(str(number) for number in range(int(readable.max()) + 1))
        if classes is not None and own != classes:
            raise InputError(
                f"{field}: expected the {len(classes)} classes of data.root, got {len(own)} that are not the "
                "same. Shard both from folders with the same class folders."
            )
    return ShardDataset(
        shards,
        index,
        in_chans=config.in_chans,
        min_side=_smallest_useful_side(config),
        classes=own,
    )


def _smallest_useful_side(config: DataConfig) -> int:
    """Shorter side in pixels below which the smallest random crop or evaluation's crop would be magnified."""
    height, width = config.size
    low, high = config.crop_ratio
    # A crop of share s and relative aspect r of an image of area A is sqrt(s A r W / H) wide and
    # sqrt(s A H / (r W)) high; both must reach W and H, and the shorter side is at most sqrt(A).
    crop = math.sqrt(height * width / (config.crop_scale[0] * min(low, 1 / high)))
    return math.ceil(max(crop, EVALUATION_ENLARGEMENT * max(height, width)))
