"""How well label maps are met, from exact counts of pixels."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from fcmae.downstream.segmentation.dataset import IGNORED


def count_pixels(predicted: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Pixels of each class that were given each class.

    Args:
        predicted: Classes, int64 [H, W].
        labels: Classes or IGNORED, int64 [H, W].
        num_classes: How many there are.
    Returns:
        int64 [num_classes, num_classes]: row = annotated class, column = predicted class.
    """
    if bool((labels == IGNORED).all()):  # of which torchmetrics makes a count of one pixel
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=labels.device)
    return multiclass_confusion_matrix(
        predicted, labels, num_classes=num_classes, ignore_index=IGNORED, validate_args=False
    )


def intersection_over_union(counts: Tensor) -> Tensor:
    """Of each class, float64 [num_classes]; NaN for classes that are neither annotated nor predicted."""
    counts = counts.double()
    return counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())


def scores(counts: Tensor) -> dict[str, float]:
    """What mmsegmentation calls them, in [0, 1], from the counts of all pixels of all images.

    Returns:
        "mIoU": mean intersection over union of the classes that are annotated or predicted. "aAcc": share of
        the pixels that are right. "mAcc": mean over the annotated classes of the share of theirs. All 0 where
        nothing is annotated.
    """
    counts = counts.double()
    if not counts.any():
        return {"mIoU": 0.0, "aAcc": 0.0, "mAcc": 0.0}
    return {
        "mIoU": intersection_over_union(counts).nanmean().item(),
        "aAcc": (counts.diag().sum() / counts.sum()).item(),
        "mAcc": (counts.diag() / counts.sum(1)).nanmean().item(),
    }
