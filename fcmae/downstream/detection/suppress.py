"""Suppression of boxes that show what a better box shows: hard, or by lowering their scores."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from fcmae.config import DetectTestConfig

_LEAST_SCORE = 1e-3
"""What soft-NMS lowers below it is dropped (Bodla et al. 2017)."""


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, test: DetectTestConfig) -> tuple[Tensor, Tensor]:
    """Which boxes stay, best first, and their scores; boxes of different classes leave each other alone.

    Args:
        boxes: [N, 4], left, top, right, bottom.
        scores: [N].
        labels: [N].
        test: Kind, threshold, width of the Gaussian, and how many stay at most.
    Returns:
        (indices [K], scores [K]).
    Paper: Bodla et al. 2017, Soft-NMS.
    """
    if test.nms == "hard":
        kept = batched_nms(boxes, scores, labels, test.nms_threshold)[: test.detections]
        return kept, scores[kept]
    left = scores.clone()
    indices: list[Tensor] = []
    found: list[Tensor] = []
    # A chosen box has its last score, and no later one has a larger: the first `detections` are the best.
    for _ in range(min(test.detections, len(boxes))):
        best = left.argmax()
        indices.append(best)
        found.append(left[best])
        overlap = box_iou(boxes[best][None], boxes)[0]
        if test.nms == "gaussian":
            factor = torch.exp(-(overlap**2) / test.nms_sigma)
        else:
            factor = torch.where(overlap > test.nms_threshold, 1 - overlap, 1.0)
        left = torch.where(labels == labels[best], left * factor, left)
        left[best] = -1.0
    if not indices:
        return labels.new_zeros(0), scores
    kept, values = torch.stack(indices), torch.stack(found)
    good = values >= _LEAST_SCORE
    return kept[good], values[good]
