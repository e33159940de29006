"""Soft-NMS against its definition, box by box."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from fcmae.config import DetectTestConfig
from fcmae.downstream.detection.suppress import suppress


def draw(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, generator=generator) * 10
    scores = torch.rand(count, generator=generator)
    return (
        torch.cat([corner, corner + side + 0.1], dim=1),
        scores,
        torch.randint(1, 3, (count,), generator=generator),
    )


def by_definition(
    boxes: Tensor, scores: Tensor, labels: Tensor, test: DetectTestConfig
) -> list[tuple[int, float]]:
    """The best box of all goes to the result and lowers the scores of the others of its class, and so on."""
    left = {index: score for index, score in enumerate(scores.tolist())}
    least = 1e-9 if test.nms == "hard" else 1e-3
    found = []
    while left:
        best = max(left, key=lambda index: left[index])
        score = left.pop(best)
        if score >= least:
            found.append((best, score))
        for other in list(left):
            overlap = box_iou(boxes[best][None], boxes[other][None]).item()
            if labels[other] != labels[best]:
                continue
            if test.nms == "gaussian":
                left[other] *= math.exp(-(overlap**2) / test.nms_sigma)
            elif overlap > test.nms_threshold:
                left[other] *= 1 - overlap if test.nms == "linear" else 0
    return found[: test.detections]


@pytest.mark.parametrize("nms", ["hard", "linear", "gaussian"])
@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 25), seed=st.integers(0, 9999), most=st.sampled_from([3, 100]))
def test_suppression_is_its_definition(nms: str, count: int, seed: int, most: int) -> None:
    boxes, scores, labels = draw(count, seed)
    test = DetectTestConfig(nms=nms, nms_threshold=0.3, nms_sigma=0.4, detections=most)  # pyright: ignore
    kept, values = suppress(boxes, scores, labels, test)
    wanted = by_definition(boxes, scores, labels, test)
    assert kept.tolist() == [index for index, _ in wanted]
    assert values.tolist() == pytest.approx([score for _, score in wanted], rel=1e-5)


def test_a_duplicate_is_lowered_and_another_class_is_not() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 1, 2])
    kept, values = suppress(boxes, scores, labels, DetectTestConfig(nms="gaussian", nms_sigma=0.5))
    assert kept.tolist() == [0, 2, 1]
    assert values.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-2)])
    assert suppress(boxes, scores, labels, DetectTestConfig(nms="linear"))[0].tolist() == [0, 2]
