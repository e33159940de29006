"""Detections drawn over their image."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from fcmae.downstream.detection.detect import Detections

# Of matplotlib's tab10, whose neighbours are easy to tell apart.
_COLOURS = [
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (188, 189, 34),
    (23, 190, 207),
]


def draw_overlay(pixels: Tensor, found: Detections, names: Sequence[str]) -> Tensor:
    """The image with the masks and boxes found in it, each class in its colour: uint8 [3, H, W].

    Args:
        pixels: [C, H, W], float32 in [0, 1] or uint8; of other than three channels, their mean is shown.
        found: What to draw.
        names: Of the classes.
    """
    if len(pixels) != 3:
        pixels = TF.to_dtype(pixels, torch.float32, scale=True).mean(dim=0, keepdim=True).repeat(3, 1, 1)
    image = TF.to_dtype(pixels, torch.uint8, scale=True)
    if len(found.boxes) == 0:
        return image
    labels = (found.labels - 1).tolist()
    colours = [_COLOURS[label % len(_COLOURS)] for label in labels]
    texts = [
        f"{names[label]} {score:.2f}" for label, score in zip(labels, found.scores.tolist(), strict=True)
    ]
    image = draw_segmentation_masks(image, found.masks.cpu(), alpha=0.5, colors=colours)
    # A box of less than a pixel would have no line.
    boxes = found.boxes.cpu().round()
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return draw_bounding_boxes(image, boxes, texts, colors=colours)


def save_overlay(picture: Tensor, path: Path) -> None:
    """Write uint8 [3, H, W] as PNG; folders are made.

    Raises:
        OSError: the disk is full or gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    TF.to_pil_image(picture).save(path)
