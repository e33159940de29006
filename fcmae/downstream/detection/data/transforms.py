"""Large-scale jitter: an annotated image of any size becomes one on a canvas of fixed size."""

import math
from dataclasses import dataclass

import torch
from torchvision.ops import masks_to_boxes
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from fcmae.config import PixelConfig
from fcmae.downstream.detection.data.dataset import Example, Target
from fcmae.downstream.pixels import normalised


@dataclass(frozen=True, kw_only=True)
class LargeScaleJitter:
    """Scales the image at random, cuts the canvas out of it or lays it into the canvas' corner, and flips it.

    The image at scale 1 is the largest that fits the canvas. Beyond its right and lower edge the canvas holds
    the mean colour. Instances of which no pixel is left are dropped, as are crowds, and boxes are drawn anew
    around what is left of the masks, as in ViTDet's training.

    torchvision's ScaleJitter with RandomCrop comes to the same, but makes the whole enlarged image first, and
    gives narrow images a side of 0 pixels.

    Args:
        size: (H, W) of the canvas in pixels.
        scale: Smallest and largest scale, drawn uniformly (the papers: 0.1 to 2).
        flip: Whether half of the images are mirrored.
        pixels: Mean and deviation per channel.
    Paper: Ghiasi et al. 2021, Simple Copy-Paste, section 3.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    flip: bool
    pixels: PixelConfig

    def __call__(self, example: Example) -> Example:
        image, target = example.image, example.target
        draws = torch.rand(4).tolist()
        low, high = self.scale
        sides = list(zip(image.shape[-2:], self.size, strict=True))
        factor = (low + (high - low) * draws[0]) * min(canvas / side for side, canvas in sides)
        window = [min(side, math.ceil(canvas / factor)) for side, canvas in sides]
        place = [
            int(draw * (side - cut + 1))
            for draw, (side, _), cut in zip(draws[1:], sides, window, strict=False)
        ]
        new = [
            min(canvas, max(1, round(cut * factor))) for (_, canvas), cut in zip(sides, window, strict=True)
        ]
        cut_out = (place[0], place[1], window[0], window[1])
        edges = [0, 0, self.size[1] - new[1], self.size[0] - new[0]]  # left, top, right, bottom

        image = TF.resized_crop(image, *cut_out, new, InterpolationMode.BILINEAR, antialias=True)
        masks = TF.resized_crop(target.masks, *cut_out, new, InterpolationMode.NEAREST_EXACT)
        image = normalised(image, self.pixels)
        if self.flip and draws[3] < 0.5:
            image, masks = image.flip(-1), masks.flip(-1)
        image, masks = TF.pad(image, edges), TF.pad(masks, edges)
        kept = masks.flatten(1).bool().any(dim=1) & ~target.crowd
        target = _around(target._replace(masks=masks).at(kept))
        return example._replace(image=image, target=target, size=(new[0], new[1]))


def _around(target: Target) -> Target:
    """The target with the boxes of its masks."""
    boxes = masks_to_boxes(target.masks)
    boxes[:, 2:] += 1  # from the last pixel to the edge behind it
    return target._replace(boxes=boxes)
