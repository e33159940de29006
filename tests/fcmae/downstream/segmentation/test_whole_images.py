"""Windows, scales and mirrors, against networks whose answer is known."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcmae.config import SegmentDataConfig, SegmentTestConfig
from fcmae.downstream.segmentation.whole import class_probabilities, window_starts
from fcmae.errors import InputError

DATA = SegmentDataConfig(image_size=(16, 24), resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)


def colours(images: Tensor) -> Tensor:
    """Logits that each pixel decides alone."""
    return images * 8


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [(30, 16, 10, [0, 10, 14]), (16, 16, 10, [0]), (36, 16, 10, [0, 10, 20]), (9, 9, 6, [0])],
)
def test_windows_reach_the_edge(side: int, window: int, stride: int, expected: list[int]) -> None:
    assert window_starts(side, window, stride) == expected


@pytest.mark.parametrize("size", [(16, 24), (40, 61), (7, 100), (9, 5)])
@pytest.mark.parametrize(
    "test",
    [
        SegmentTestConfig(),
        SegmentTestConfig(window=0),
        SegmentTestConfig(window=10, stride=3, batch_size=3),
        SegmentTestConfig(flip=True),
        SegmentTestConfig(window=(8, 30), stride=(8, 7), flip=True, scales=(1.0, 1.0)),
    ],
)
def test_windows_and_mirrors_change_nothing_of_a_pixelwise_network(
    size: tuple[int, int], test: SegmentTestConfig
) -> None:
    image = torch.rand(3, *size)
    found = class_probabilities(colours, image, data=DATA, test=test)
    assert torch.allclose(found, (image * 8).softmax(dim=0), atol=1e-6)


def test_overlapping_windows_are_averaged() -> None:
    def first_column(images: Tensor) -> Tensor:
        """A logit that tells where in its window a pixel is."""
        ramp = torch.arange(images.shape[-1]).float().expand(len(images), 1, images.shape[-2], -1)
        return torch.cat([ramp, torch.zeros_like(ramp)], dim=1)

    test = SegmentTestConfig(window=(4, 4), stride=(4, 2))
    found = class_probabilities(first_column, torch.rand(3, 4, 6), data=DATA, test=test)
    expected = torch.tensor([0.0, 1.0, (2 + 0) / 2, (3 + 1) / 2, 2.0, 3.0]).sigmoid()
    assert torch.allclose(found[0], expected.expand(4, -1))


def test_scales_are_averaged_as_probabilities() -> None:
    seen: list[list[int]] = []

    def network(images: Tensor) -> Tensor:
        seen.append(list(images.shape[2:]))
        return (
            torch.full((len(images), 2, *images.shape[2:]), 0.0)
            + torch.tensor([float(images.shape[2] > 20), 0.0])[:, None, None]
        )

    test = SegmentTestConfig(window=0, scales=(0.5, 2.0))
    data = SegmentDataConfig(image_size=16, resize=(20, 100))
    found = class_probabilities(network, torch.rand(3, 10, 12), data=data, test=test)
    assert seen == [[10, 12], [40, 48]]  # of the 20 x 24 at scale 1
    expected = (torch.tensor(0.0).sigmoid() + torch.tensor(1.0).sigmoid()) / 2
    assert torch.allclose(found[0], expected.expand(10, 12))


def test_mirrored_answer_is_mirrored_back() -> None:
    def left_half(images: Tensor) -> Tensor:
        """Sees the left half only."""
        logits = colours(images)
        logits[..., images.shape[-1] // 2 :] = 0
        return logits

    image = torch.rand(3, 8, 8)
    found = class_probabilities(left_half, image, data=DATA, test=SegmentTestConfig(window=0, flip=True))
    expected = ((image * 8).softmax(dim=0) + torch.full((3, 8, 8), 1 / 3)) / 2
    assert torch.allclose(found, expected, atol=1e-6)


def test_pictures_of_8_bits_are_normalised() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    found = class_probabilities(colours, image, data=DATA, test=SegmentTestConfig())
    assert torch.allclose(found, F.softmax(image / 255 * 8, dim=0), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": -1}, "test.window: expected positive pixels or 0, got -1"),
        ({"window": (0, 5)}, "test.window: expected positive pixels or 0"),
        ({"stride": 0}, "test.stride: expected positive pixels"),
        ({"scales": ()}, "test.scales: expected positive scales"),
        ({"batch_size": 0}, "test.batch_size: expected at least 1"),
    ],
)
def test_refused_settings(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegmentTestConfig(**options)
