"""An annotated image of any size becomes a normalised crop of fixed size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from fcmae.config import SegmentDataConfig
from fcmae.downstream.pixels import normalised
from fcmae.downstream.segmentation.dataset import IGNORED, Example

_TRIES = 10


def fitting_scale(size: tuple[int, int], resize: tuple[int, int] | None) -> float:
    """Factor by which an image (h, w) becomes the largest within `resize`, (shorter, longer side)."""
    return 1.0 if resize is None else min(resize[0] / min(size), resize[1] / max(size))


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Scales the image at random, cuts a crop out of it, flips it and jitters its colours.

    Where the image is smaller than the crop, it stands in the top left corner; beyond it are 0 and IGNORED.
    """

    config: SegmentDataConfig

    def __call__(self, example: Example) -> Example:
        config = self.config
        low, high = config.scale
        factor = fitting_scale(example.size, config.resize) * (low + (high - low) * torch.rand(()).item())
        # What the crop shows of the image, in the image's own pixels: only that is scaled.
        window = [
            min(side, math.ceil(crop / factor)) for side, crop in zip(example.size, config.size, strict=True)
        ]
        crop = [
            min(crop, max(1, round(side * factor))) for side, crop in zip(window, config.size, strict=True)
        ]
        box, labels = (0, 0, window[0], window[1]), example.labels
        for _ in range(_TRIES):
            top, left = (
                int(draw * (side - cut + 1))
                for draw, side, cut in zip(torch.rand(2).tolist(), example.size, window, strict=True)
            )
            box = (top, left, window[0], window[1])
            labels = TF.resized_crop(example.labels[None], *box, crop, InterpolationMode.NEAREST_EXACT)[0]
            if largest_share(labels) < config.max_class_share or config.max_class_share == 1:
                break
        image = TF.resized_crop(example.image, *box, crop, InterpolationMode.BILINEAR, antialias=True)
        if config.flip and torch.rand(()) < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        if config.jitter and len(image) == 3:
            image = v2.RandomPhotometricDistort()(image)
        edges = (0, config.size[1] - crop[1], 0, config.size[0] - crop[0])  # left, right, top, bottom
        return example._replace(
            image=F.pad(normalised(image, config), edges),
            labels=F.pad(labels, edges, value=IGNORED),
            size=(crop[0], crop[1]),
        )


def largest_share(labels: Tensor) -> float:
    """Share of the largest class among the pixels that have one; 1 where none has."""
    counts = labels[labels != IGNORED].bincount()
    return 1.0 if len(counts) == 0 else float(counts.max() / counts.sum())
