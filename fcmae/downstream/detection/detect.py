"""Instances of one image: seen at several sizes and mirrored, boxes pooled, masks averaged."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_inference, paste_masks_in_image
from torchvision.ops import clip_boxes_to_image, remove_small_boxes
from torchvision.transforms.v2 import functional as TF

from fcmae.config import DetectTestConfig
from fcmae.downstream.detection.model import Detector
from fcmae.downstream.detection.suppress import suppress


class Detections(NamedTuple):
    """The N instances found in an image, best first."""

    boxes: Tensor
    """[N, 4], float32: left, top, right, bottom in the image's pixels."""
    labels: Tensor
    """[N], int64, from 1 on."""
    scores: Tensor
    """[N], float32, in [0, 1]."""
    masks: Tensor
    """[N, H, W], bool."""


class _View(NamedTuple):
    """The image as the network sees it once."""

    features: dict[str, Tensor]
    size: tuple[int, int]
    flip: bool


@torch.no_grad()
def detect(detector: Detector, image: Tensor, test: DetectTestConfig) -> Detections:
    """What Mask R-CNN sees in an image.

    An image is never in a batch with others, so that these do not change what is found in it. With one size
    and hard suppression this is torchvision's inference.

    Args:
        detector: In evaluation mode.
        image: [C, H, W] of any size, normalised, on the detector's device.
        test: Sizes, suppression and thresholds.
    """
    height, width = image.shape[1:]
    flips = (False, True) if test.flip else (False,)
    views = [
        _look(detector, image, side, test.long_side, flip) for side in test.short_sides for flip in flips
    ]
    found = [_candidates(detector, view, (height, width), test) for view in views]
    boxes, labels, scores = (torch.cat(part) for part in zip(*found, strict=True))
    kept, scores = suppress(boxes, scores, labels, test)
    boxes, labels = boxes[kept], labels[kept]
    small = torch.stack([_masks(detector, view, boxes, labels, (height, width)) for view in views]).mean(
        dim=0
    )
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=image.device)
    for mask, part, box in zip(masks, small, boxes, strict=True):  # one by one: a large image has large masks
        mask.copy_(paste_masks_in_image(part[None], box[None], (height, width))[0, 0] > 0.5)
    return Detections(boxes, labels, scores, masks)


def _look(detector: Detector, image: Tensor, short_side: int, long_side: int, flip: bool) -> _View:
    sides = image.shape[1:]
    factor = min(short_side / min(sides), long_side / max(sides))
    height, width = (max(1, round(side * factor)) for side in sides)
    seen = TF.resize(image, [height, width], antialias=True)[None]
    features = detector.features(seen.flip(-1) if flip else seen, [(height, width)])
    return _View({name: value.float() for name, value in features.items()}, (height, width), flip)


def _candidates(
    detector: Detector, view: _View, size: tuple[int, int], test: DetectTestConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in the image's own pixels, labels and scores of every class above the threshold."""
    proposals, _ = detector.propose(view.features, [view.size])
    heads: Any = detector.roi_heads
    pooled = heads.box_roi_pool(view.features, proposals, [detector.canvas(view.features)])
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    boxes = clip_boxes_to_image(heads.box_coder.decode(deltas.float(), proposals), view.size)[:, 1:]
    scores = logits.float().softmax(dim=-1)[:, 1:]
    labels = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(scores)
    likely = scores > test.score_threshold
    boxes, scores, labels = boxes[likely], scores[likely], labels[likely]
    large = remove_small_boxes(boxes, min_size=1e-2)
    return _to_image(boxes[large], view, size), labels[large], scores[large]


def _masks(detector: Detector, view: _View, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities [N, 1, 28, 28] of the boxes' pixels."""
    heads: Any = detector.roi_heads
    seen = [_to_view(boxes, view, size)]
    pooled = heads.mask_roi_pool(view.features, seen, [detector.canvas(view.features)])
    logits = heads.mask_predictor(heads.mask_head(pooled)).float()
    masks = maskrcnn_inference(logits, [labels])[0]
    return masks.flip(-1) if view.flip else masks


def _to_image(boxes: Tensor, view: _View, size: tuple[int, int]) -> Tensor:
    if view.flip:
        boxes = _mirrored(boxes, view.size[1])
    return boxes * _factors(boxes, view.size, size)


def _to_view(boxes: Tensor, view: _View, size: tuple[int, int]) -> Tensor:
    boxes = boxes * _factors(boxes, size, view.size)
    return _mirrored(boxes, view.size[1]) if view.flip else boxes


def _factors(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """[4]: of x, y, x and y."""
    return boxes.new_tensor([new[1] / old[1], new[0] / old[0]]).repeat(2)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(dim=1)
    return torch.stack([width - right, top, width - left, bottom], dim=1)
