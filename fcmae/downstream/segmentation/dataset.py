"""Images with their label maps, by index; what is wrong with a label map, in one line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcmae.config import SegmentDataConfig
from fcmae.data import ImageDataset, UnreadableImageError, decode_image
from fcmae.data.decode import with_channels
from fcmae.data.sources.folders import find_images
from fcmae.data.sources.splits import hold_out
from fcmae.downstream.samples import draw_samples
from fcmae.errors import InputError

IGNORED = -1
"""Class of pixels that are neither trained on nor counted."""
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_SHOWN = 5


class Example(NamedTuple):
    """An annotated image."""

    image: Tensor
    """[C, H, W], uint8 or float32 in [0, 1]; after a transform for training, normalised."""
    labels: Tensor
    """[H, W], int64: classes from 0 on, or IGNORED."""
    size: tuple[int, int]
    """(h, w) of the image, which stands in the top left corner; the rest is padding."""
    number: int
    """Its place in the dataset."""


class LabelMapDataset(ImageDataset[Example]):
    """Image files and their label maps.

    Args:
        images: Paths.
        labels: Path of each image's label map.
        config: Channels, classes, and what becomes of broken label maps.
    """

    def __init__(self, images: Sequence[str], labels: Sequence[str], config: SegmentDataConfig) -> None:
        self._images, self._labels, self._config = images, labels, config

    def __len__(self) -> int:
        return len(self._images)

    def name_of(self, index: int) -> str:
        return self._images[index]

    def load(self, index: int) -> Example:
        """See `ImageDataset`; a broken label map counts as an unreadable image, or refuses the set."""
        # 8 bits suffice for what is resized and only then normalised, and cost a fraction of the time.
        image = decode_image(self._images[index], in_chans=self._config.in_chans, keep_8_bit=True)
        size = (image.shape[1], image.shape[2])
        try:
            labels = read_label_map(self._labels[index], self._config, size=size)
        except UnreadableImageError as error:
            if self._config.broken == "skip":
                raise
            raise _refusal(error) from error
        return Example(image, labels, size, index)


class SampleDataset(ImageDataset[Example]):
    """The built-in photographs.

    Args:
        in_chans: Channels of the pixels: 3, or 1 for grey ones.
    """

    def __init__(self, *, in_chans: int) -> None:
        self._samples = draw_samples()
        self._in_chans = in_chans

    def __len__(self) -> int:
        return len(self._samples)

    def name_of(self, index: int) -> str:
        return f"sample {index}"

    def load(self, index: int) -> Example:
        sample = self._samples[index]
        pixels = torch.from_numpy(sample.image).permute(2, 0, 1) / 255
        image = with_channels(pixels, self._in_chans, "the samples")
        return Example(image, torch.from_numpy(sample.labels).long(), sample.labels.shape, index)


def open_label_maps(
    config: SegmentDataConfig, *, split: Literal["train", "val"]
) -> tuple[ImageDataset[Example], list[str]]:
    """The annotated images of `config`; the same call always gives the same in the same order.

    Without `val_root` a fixed share of the images is held out; where that is 0, both splits are all of them.

    Returns:
        (images, a line for each image that is left out since it has no label map).
    Raises:
        InputError: a folder is missing or empty, or, with `broken=refuse`, a label map is missing.
    """
    if split == "val" and config.val_root is not None:
        assert config.val_labels is not None
        return _open_folders(config.val_root, config.val_labels, config, field="data.val_root")
    if config.source == "samples":
        dataset, left_out = SampleDataset(in_chans=config.in_chans), []
    else:
        assert config.root is not None and config.labels is not None
        dataset, left_out = _open_folders(config.root, config.labels, config, field="data.root")
    if config.val_root is not None or config.val_fraction == 0:
        return dataset, left_out
    parts = hold_out([0] * len(dataset), val_fraction=config.val_fraction)
    chosen = parts[split == "val"]
    if not chosen:
        raise InputError(
            f"data.val_fraction: expected a share that holds out at least one of {len(dataset)} images, "
            f"got {config.val_fraction:g}. Raise it, or set 0 to validate on the training images."
        )
    return dataset.subset(sorted(chosen)), left_out


def read_label_map(path: str, config: SegmentDataConfig, *, size: tuple[int, int]) -> Tensor:
    """The classes [H, W], int64, that a label map's values stand for; IGNORED where there is none.

    Args:
        path: An image of one channel. Of a palette the numbers count, not the colours.
        config: What its values mean.
        size: (H, W) of the image that it belongs to.
    Raises:
        UnreadableImageError: no such image, of another size, or with values that are no class.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.asarray(picture).astype(np.int64)
    except Exception as error:  # PIL meets a damaged file with almost any exception
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise UnreadableImageError(
            path, f"expected a label map, got {reason or type(error).__name__}"
        ) from error
    if mode not in _ONE_CHANNEL:
        raise UnreadableImageError(path, f"expected a label map of one channel, got an image of mode {mode}")
    if values.shape != size:
        raise UnreadableImageError(
            path,
            f"expected a label map of {size[1]} x {size[0]} pixels, as its image, got "
            f"{values.shape[1]} x {values.shape[0]}",
        )
    ignored = values == config.ignore_index
    if config.reduce_zero_label:
        ignored |= values == 0
        values = values - 1
    values[ignored] = IGNORED
    unknown = np.unique(values[(values >= config.num_classes) | ((values < 0) & ~ignored)])
    if len(unknown):
        first = int(config.reduce_zero_label)
        names = ", ".join(str(value + first) for value in unknown[:_SHOWN])
        raise UnreadableImageError(
            path,
            f"expected values from {first} to {config.num_classes - 1 + first} or {config.ignore_index}, got "
            f"{names}{', ...' if len(unknown) > _SHOWN else ''}",
        )
    return torch.from_numpy(values)


def _open_folders(
    root: str, labels: str, config: SegmentDataConfig, *, field: str
) -> tuple[ImageDataset[Example], list[str]]:
    root, labels = os.path.expanduser(root), os.path.expanduser(labels)
    images: list[str] = []
    maps: list[str] = []
    left_out: list[str] = []
    for path in find_images(root, field=field):
        label_map = str(Path(labels, Path(path).relative_to(root)).with_suffix(".png"))
        if os.path.isfile(label_map):
            images.append(path)
            maps.append(label_map)
            continue
        error = UnreadableImageError(label_map, "expected a label map, got no such file")
        if config.broken == "refuse":
            raise _refusal(error)
        left_out.append(str(error))
    if not images:
        raise InputError(
            f"{field.replace('root', 'labels')}: expected a label map NAME.png for an image of {root}, got "
            f"none in {labels}. Check the folders."
        )
    return LabelMapDataset(images, maps, config), left_out


def _refusal(error: UnreadableImageError) -> InputError:
    return InputError(
        f"data.labels: {error.reason}: {error.name}. Correct it, or set --data.broken=skip to leave out what "
        "is broken."
    )
