"""Images with their instances, by index."""

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from fcmae.config import DetectDataConfig
from fcmae.data import ImageDataset, UnreadableImageError, decode_image
from fcmae.data.decode import with_channels
from fcmae.data.sources.splits import hold_out
from fcmae.downstream.detection.data.coco import CocoAnnotations, CocoImage, read_coco
from fcmae.downstream.detection.data.instances import Instance, decode_masks, encode_mask
from fcmae.downstream.samples import CLASSES, Sample, draw_samples
from fcmae.errors import InputError


class Target(NamedTuple):
    """The N instances of an image."""

    boxes: Tensor
    """[N, 4], float32: left, top, right, bottom in pixels."""
    labels: Tensor
    """[N], int64, from 1 on."""
    masks: Tensor
    """[N, H, W], uint8, 1 inside."""
    crowd: Tensor
    """[N], bool: regions of many instances."""
    area: Tensor
    """[N], float32: pixels, as annotated."""

    def at(self, chosen: Tensor) -> "Target":
        """The instances of a bool [N] or of indices."""
        return Target(*(part[chosen] for part in self))


class Example(NamedTuple):
    """An annotated image."""

    image: Tensor
    """[C, H, W], float32 in [0, 1] or uint8; after a transform, normalised."""
    target: Target
    size: tuple[int, int]
    """(h, w) of the image, which stands in the top left corner; the rest is padding."""
    number: int
    """Its place in the annotations."""


class InstanceDataset(ImageDataset[Example]):
    """The images of COCO annotations.

    Args:
        annotations: What to see in which image.
        root: Folder that file names are relative to.
        in_chans: Channels of the pixels.
    """

    def __init__(self, annotations: CocoAnnotations, root: str, *, in_chans: int) -> None:
        self.annotations = annotations
        self._root = root
        self._in_chans = in_chans

    def __len__(self) -> int:
        return len(self.annotations)

    def name_of(self, index: int) -> str:
        return os.path.join(self._root, self.annotations[index].file_name)

    def load(self, index: int) -> Example:
        """See `ImageDataset`; an image of another size than annotated is unreadable."""
        entry = self.annotations[index]
        pixels = self._read(index)
        height, width = pixels.shape[-2:]
        if (height, width) != (entry.height, entry.width):
            raise UnreadableImageError(
                self.name_of(index),
                f"expected {entry.width} x {entry.height} pixels, as annotated, got {width} x {height}",
            )
        return Example(pixels, target_of(entry.instances, (height, width)), (height, width), index)

    def _read(self, index: int) -> Tensor:
        # 8 bits suffice for what is resized and only then normalised, and cost a fraction of the time.
        return decode_image(self.name_of(index), in_chans=self._in_chans, keep_8_bit=True)


class SampleDataset(InstanceDataset):
    """The built-in photographs.

    Args:
        in_chans: Channels of the pixels: 3, or 1 for grey ones.
    """

    def __init__(self, *, in_chans: int) -> None:
        samples = draw_samples()
        self._pixels = [
            with_channels(torch.from_numpy(sample.image).permute(2, 0, 1) / 255, in_chans, "the samples")
            for sample in samples
        ]
        images = [
            CocoImage(number, f"sample_{number}", len(sample.image), len(sample.image[0]), _instances(sample))
            for number, sample in enumerate(samples, start=1)
        ]
        categories = tuple(enumerate(CLASSES[1:], start=1))
        super().__init__(CocoAnnotations(images, categories=categories), "", in_chans=in_chans)

    def _read(self, index: int) -> Tensor:
        return self._pixels[index]


class PictureDataset(ImageDataset[Example]):
    """Image files without annotations.

    Args:
        paths: The files.
        in_chans: Channels of the pixels.
    """

    def __init__(self, paths: Sequence[str], *, in_chans: int) -> None:
        self._paths = paths
        self._in_chans = in_chans

    def __len__(self) -> int:
        return len(self._paths)

    def name_of(self, index: int) -> str:
        return self._paths[index]

    def load(self, index: int) -> Example:
        """See `ImageDataset`; nothing is to be found."""
        pixels = decode_image(self._paths[index], in_chans=self._in_chans, keep_8_bit=True)
        size = (pixels.shape[1], pixels.shape[2])
        return Example(pixels, target_of([], size), size, index)


def target_of(instances: Sequence[Instance], size: tuple[int, int]) -> Target:
    """The instances of an image of (H, W) pixels as tensors."""
    boxes = torch.tensor([instance.box for instance in instances], dtype=torch.float32)
    return Target(
        boxes=boxes.reshape(-1, 4),
        labels=torch.tensor([instance.label for instance in instances], dtype=torch.int64),
        masks=decode_masks([instance.mask for instance in instances], height=size[0], width=size[1]),
        crowd=torch.tensor([instance.crowd for instance in instances], dtype=torch.bool),
        area=torch.tensor([instance.area for instance in instances], dtype=torch.float32),
    )


def _instances(sample: Sample) -> list[Instance]:
    found = []
    for label, pixels in sample.instances:
        mask = torch.from_numpy(pixels)
        left, top, right, bottom = masks_to_boxes(mask[None])[0].tolist()
        code = encode_mask(mask)["counts"].encode()
        found.append(Instance(label, (left, top, right + 1, bottom + 1), code, False, float(mask.sum())))
    return found


def open_instances(
    config: DetectDataConfig, *, split: Literal["train", "val"]
) -> tuple[ImageDataset[Example], CocoAnnotations]:
    """The annotated images of `config`, and the annotations that `Example.number` counts in.

    The same call always gives the same in the same order. Without `val_annotations` a fixed share of the
    images is held out; where that is 0, both splits are all of them. Unless `empty_images`, images without an
    instance (crowds do not count) are left out of `train`.

    Raises:
        InputError: a file is missing, broken or not COCO's (see `read_coco`), or a split holds no image.
    """
    if config.source == "samples":
        whole: InstanceDataset = SampleDataset(in_chans=config.in_chans)
    else:
        assert config.root is not None and config.annotations is not None
        whole = _open_coco(config.annotations, config.root, config, field="data.annotations")
        if split == "val" and config.val_annotations is not None:
            val_root = config.val_root or config.root
            categories = whole.annotations.categories
            whole = _open_coco(
                config.val_annotations, val_root, config, field="data.val_annotations", categories=categories
            )
            return whole, whole.annotations
    chosen = list(range(len(whole)))
    if config.val_annotations is None and config.val_fraction > 0:
        chosen = sorted(hold_out([0] * len(whole), val_fraction=config.val_fraction)[split == "val"])
    if split == "train" and not config.empty_images:
        chosen = [
            number
            for number in chosen
            if any(not instance.crowd for instance in whole.annotations[number].instances)
        ]
    if not chosen:
        advice = (
            "Set --data.val_annotations, or --data.val_fraction=0 to validate on the training images."
            if split == "val"
            else "Check data.annotations, or set --data.empty_images=true."
        )
        raise InputError(
            f"data.annotations: expected images to {'validate' if split == 'val' else 'train'} on, got none "
            f"of {len(whole)}. {advice}"
        )
    return whole.subset(chosen), whole.annotations


def _open_coco(
    path: str,
    root: str,
    config: DetectDataConfig,
    *,
    field: str,
    categories: tuple[tuple[int, str], ...] | None = None,
) -> InstanceDataset:
    path, root = os.path.expanduser(path), os.path.expanduser(root)
    annotations = read_coco(path, root, field=field, skip=config.broken == "skip", categories=categories)
    return InstanceDataset(annotations, root, in_chans=config.in_chans)
