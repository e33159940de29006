"""Images with their instances, by index."""

import os
from typing import NamedTuple

import torch
from torch import Tensor

from fcmae.data import ImageDataset, UnreadableImageError, decode_image
from fcmae.downstream.detection.coco import CocoAnnotations
from fcmae.downstream.detection.instances import decode_masks


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
        entry = self.annotations[index]
        path = os.path.join(self._root, entry.file_name)
        # 8 bits suffice for what is resized and only then normalised, and cost a fraction of the time.
        pixels = decode_image(path, in_chans=self._in_chans, keep_8_bit=True)
        height, width = pixels.shape[-2:]
        if (height, width) != (entry.height, entry.width):
            raise UnreadableImageError(
                path, f"expected {entry.width} x {entry.height} pixels, as annotated, got {width} x {height}"
            )
        instances = entry.instances
        boxes = torch.tensor([instance.box for instance in instances], dtype=torch.float32).reshape(-1, 4)
        target = Target(
            boxes=boxes,
            labels=torch.tensor([instance.label for instance in instances], dtype=torch.int64),
            masks=decode_masks([instance.mask for instance in instances], height=height, width=width),
            crowd=torch.tensor([instance.crowd for instance in instances], dtype=torch.bool),
            area=torch.tensor([instance.area for instance in instances], dtype=torch.float32),
        )
        return Example(pixels, target, (height, width), index)
