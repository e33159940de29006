"""Where images come from: `open_dataset` finds what the configuration names, and splits it."""

import math
from typing import Literal

from fcmae.config import DataConfig
from fcmae.data.dataset import ImageDataset
from fcmae.data.sources.arrays import open_arrays
from fcmae.data.sources.digits import DigitsDataset
from fcmae.data.sources.encoded import Decoding
from fcmae.data.sources.folders import open_folder
from fcmae.data.sources.parquet import open_parquet
from fcmae.data.sources.shards import open_shards
from fcmae.data.sources.splits import hold_out, limit_labels
from fcmae.data.transforms.standard import EVALUATION_ENLARGEMENT
from fcmae.errors import InputError

Split = Literal["train", "val", "all"]


def open_dataset(
    config: DataConfig, *, split: Split, labelled: bool, full_size: bool = False
) -> ImageDataset:
    """The images of `config`; the same call always gives the same images in the same order.

    `all` is every image of `root`, for pretraining. `train` and `val` are fine-tuning's: `root` and
    `val_root`, or without `val_root` a fixed split of `root` by `val_fraction`, each class alike.
    `labels_per_class` limits `train` only.

    Args:
        config: Source, folders and split.
        split: Which images.
        labelled: Whether the class of each image is wanted: its subfolder, its digit, its column, or its
            entry in `config.labels`.
        full_size: Decode large JPEGs at their size, not at a half or less where crops need no more.
    Raises:
        InputError: a folder is missing, empty or without classes, or the split wants more images than it has.
    """
    val_root = config.val_root
    dataset = _open_root(config, labelled=labelled, full_size=full_size)
    if split == "all":
        return dataset
    if split == "val" and val_root is not None:
        return _open_encoded(
            val_root,
            config,
            field="data.val_root",
            labelled=labelled,
            classes=dataset.classes,
            full_size=full_size,
        )

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


def _open_root(config: DataConfig, *, labelled: bool, full_size: bool) -> ImageDataset:
    if config.source == "digits":
        return DigitsDataset(config.size, in_chans=config.in_chans, labelled=labelled)
    if config.source == "arrays":
        return open_arrays(config, labelled=labelled)
    assert config.root is not None  # checked by DataConfig
    return _open_encoded(config.root, config, field="data.root", labelled=labelled, full_size=full_size)


def _open_encoded(
    root: str,
    config: DataConfig,
    *,
    field: str,
    labelled: bool,
    full_size: bool,
    classes: tuple[str, ...] | None = None,
) -> ImageDataset:
    decoding = Decoding(
        in_chans=config.in_chans,
        min_side=None if full_size else _smallest_useful_side(config),
    )
    if config.source == "folder":
        return open_folder(root, field=field, labelled=labelled, classes=classes, decoding=decoding)
    open_ = open_shards if config.source == "shards" else open_parquet
    dataset = open_(root, config, field=field, labelled=labelled, classes=classes, decoding=decoding)
    if not len(dataset):
        raise InputError(f"{field}: expected at least one image, got none in {root}. Check the path.")
    return dataset


def _smallest_useful_side(config: DataConfig) -> int:
    """Shorter side in pixels below which the smallest random crop or evaluation's crop would be magnified."""
    height, width = config.size
    low, high = config.crop_ratio
    # A crop of share s and relative aspect r of an image of area A is sqrt(s A r W / H) wide and
    # sqrt(s A H / (r W)) high; both must reach W and H, and the shorter side is at most sqrt(A).
    crop = math.sqrt(height * width / (config.crop_scale[0] * min(low, 1 / high)))
    return math.ceil(max(crop, EVALUATION_ENLARGEMENT * max(height, width)))
