"""UPerNet on every pyramid: shapes, loss, layers; and the metrics from counts."""

import math

import pytest
import torch
from downstream_encoders import small_pyramid
from torch import Tensor

from fcmae.downstream.segmentation.dataset import IGNORED
from fcmae.downstream.segmentation.metrics import count_pixels, intersection_over_union, scores
from fcmae.downstream.segmentation.model import Segmenter, pixel_loss


def segmenter(backbone: str, *, auxiliary_dim: int = 8) -> Segmenter:
    return Segmenter(small_pyramid(backbone), num_classes=5, head_dim=12, auxiliary_dim=auxiliary_dim)


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_logits_of_every_pixel(backbone: str, size: tuple[int, int]) -> None:
    model = segmenter(backbone).train()
    logits, auxiliary = model(torch.randn(2, 3, *size))
    assert auxiliary is not None
    assert logits.shape == auxiliary.shape == (2, 5, *size)
    assert model.eval()(torch.randn(1, 3, *size))[1] is None
    assert segmenter(backbone, auxiliary_dim=0).train()(torch.randn(2, 3, *size))[1] is None


def test_every_parameter_learns(backbone: str) -> None:
    model = segmenter(backbone).train()
    logits, auxiliary = model(torch.randn(2, 3, 64, 64), [(64, 64), (40, 64)])
    assert auxiliary is not None
    labels = torch.randint(0, 5, (2, 64, 64))
    (pixel_loss(logits, labels) + pixel_loss(auxiliary, labels)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_layer_decay_spares_the_heads(backbone: str) -> None:
    model = segmenter(backbone)
    scale, own = model.layer_scale(0.5), model.pyramid.layer_scale(0.5)
    for name, _ in model.named_parameters():
        if name.startswith("pyramid."):
            assert scale(name) == own(name.removeprefix("pyramid."))
        else:
            assert scale(name) == 1.0
    assert min(scale(name) for name, _ in model.named_parameters()) < 0.1
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names


def test_loss_counts_pixels_without_a_class_as_zero() -> None:
    logits = torch.randn(1, 3, 2, 2)
    labels = torch.tensor([[[0, 2], [IGNORED, IGNORED]]])
    chosen = logits.log_softmax(dim=1)
    expected = -(chosen[0, 0, 0, 0] + chosen[0, 2, 0, 1]) / 4
    assert torch.allclose(pixel_loss(logits, labels), expected)
    assert pixel_loss(logits, torch.full((1, 2, 2), IGNORED)) == 0


def by_hand(predicted: Tensor, labels: Tensor, classes: int) -> tuple[float, float, float]:
    """mIoU, aAcc and mAcc, pixel by pixel."""
    pairs = [(int(a), int(b)) for a, b in zip(labels.ravel(), predicted.ravel(), strict=True) if a >= 0]
    overlaps, recalls = [], []
    for one in range(classes):
        both = sum(pair == (one, one) for pair in pairs)
        either = sum(one in pair for pair in pairs)
        annotated = sum(pair[0] == one for pair in pairs)
        if either:
            overlaps.append(both / either)
        if annotated:
            recalls.append(both / annotated)
    right = sum(a == b for a, b in pairs) / len(pairs)
    return sum(overlaps) / len(overlaps), right, sum(recalls) / len(recalls)


def test_scores_by_hand() -> None:
    counts = torch.zeros(6, 6, dtype=torch.int64)
    labels, predicted = torch.randint(-1, 4, (3, 9, 7)), torch.randint(0, 5, (3, 9, 7))
    for one, other in zip(predicted, labels, strict=True):
        counts += count_pixels(one, other, num_classes=6)
    found = scores(counts)
    expected = by_hand(predicted, labels, 6)
    assert [found["mIoU"], found["aAcc"], found["mAcc"]] == pytest.approx(expected, abs=1e-12)
    # Class 4 is predicted but not annotated, class 5 is neither.
    shares = intersection_over_union(counts)
    assert shares[4] == 0 and math.isnan(shares[5])


def test_images_without_annotations_count_nothing() -> None:
    counts = count_pixels(torch.zeros(2, 2).long(), torch.full((2, 2), IGNORED), num_classes=3)
    assert not counts.any() and scores(counts) == {"mIoU": 0.0, "aAcc": 0.0, "mAcc": 0.0}
