"""Predicted classes as files: label maps, and the classes laid over their image."""

import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from torchvision.utils import draw_segmentation_masks

from fcmae.config import SegmentDataConfig

_TURN = (5**0.5 - 1) / 2  # of the hue from one class to the next: no two of a few are alike


def save_label_map(classes: Tensor, path: Path, config: SegmentDataConfig) -> None:
    """Write classes [H, W] as a PNG with the values that the training's label maps have.

    Of 8 bits where these suffice, else of 16.
    """
    values = classes.cpu().numpy() + int(config.reduce_zero_label)
    highest = config.num_classes - 1 + int(config.reduce_zero_label)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8 if highest < 256 else np.uint16)).save(path)


def save_overlay(image: Tensor, classes: Tensor, path: Path, *, num_classes: int) -> None:
    """Write an image under the colours of its classes, the first of which stays clear.

    Args:
        image: [C, H, W], uint8 or float32 in [0, 1]; the first three channels are shown, or the only one.
        classes: int64 [H, W].
        path: A JPEG or PNG.
        num_classes: How many there are.
    """
    shown = TF.to_dtype(image.cpu(), torch.uint8, scale=True)
    shown = shown[:3] if len(shown) >= 3 else shown[:1].expand(3, -1, -1)
    masks = F.one_hot(classes.cpu(), num_classes).permute(2, 0, 1).bool()
    colours: list[str | tuple[int, int, int]] = [_colour(number) for number in range(1, num_classes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_segmentation_masks(shown.contiguous(), masks[1:], alpha=0.6, colors=colours)
    Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(path)


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * _TURN % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
