"""Large-scale jitter keeps image, masks and boxes in one place, whatever the image's size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcmae.config import PixelConfig
from fcmae.downstream.detection.data.dataset import Example, Target
from fcmae.downstream.detection.data.transforms import LargeScaleJitter
from fcmae.downstream.pixels import normalised

PLAIN = PixelConfig(in_chans=1, mean=(0.0,), std=(1.0,))


def example(masks: torch.Tensor, *, crowd: tuple[int, ...] = ()) -> Example:
    """An image that is white where any mask is."""
    count = len(masks)
    target = Target(
        boxes=torch.zeros(count, 4),
        labels=torch.arange(1, count + 1),
        masks=masks.to(torch.uint8),
        crowd=torch.tensor([number in crowd for number in range(count)], dtype=torch.bool),
        area=torch.ones(count),
    )
    image = masks.any(dim=0, keepdim=True) if count else torch.zeros(1, *masks.shape[1:])
    return Example(image.float(), target, (masks.shape[1], masks.shape[2]), 5)


def jitter(
    size: tuple[int, int], scale: tuple[float, float], *, flip: bool = False, pixels: PixelConfig = PLAIN
) -> LargeScaleJitter:
    return LargeScaleJitter(size=size, scale=scale, flip=flip, pixels=pixels)


def rectangles(height: int, width: int, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    masks = torch.zeros(len(boxes), height, width)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return masks


def test_scale_one_fits_the_image_into_the_corner_of_the_canvas() -> None:
    moved = jitter((64, 64), (1.0, 1.0))(example(rectangles(20, 32, (4, 2, 10, 8), (20, 10, 32, 20))))
    assert moved.size == (40, 64) and moved.image.shape == (1, 64, 64) and moved.number == 5
    assert moved.target.boxes.tolist() == [[8, 4, 20, 16], [40, 20, 64, 40]]
    assert moved.target.labels.tolist() == [1, 2]
    assert not moved.image[:, 40:].any() and not moved.target.masks[:, 40:].any()


def test_scale_two_cuts_a_window_and_drops_what_is_outside() -> None:
    masks = rectangles(32, 32, (0, 0, 8, 8), (14, 14, 18, 18), (24, 24, 32, 32))
    seen = []
    for seed in range(20):
        torch.manual_seed(seed)
        moved = jitter((32, 32), (2.0, 2.0))(example(masks))
        assert moved.size == (32, 32)
        seen += moved.target.labels.tolist()
        assert all(box[2] - box[0] <= 16 for box in moved.target.boxes.tolist())
    assert seen.count(2) == 20 and 0 < seen.count(1) < 20 and 0 < seen.count(3) < 20


def test_half_of_the_images_are_mirrored_with_their_masks() -> None:
    masks = rectangles(16, 16, (0, 0, 4, 4))
    lefts = []
    for seed in range(30):
        torch.manual_seed(seed)
        lefts.append(jitter((16, 16), (1.0, 1.0), flip=True)(example(masks)).target.boxes[0, 0].item())
    assert set(lefts) == {0.0, 12.0} and 6 < lefts.count(0.0) < 24


def test_crowds_are_not_trained_on() -> None:
    masks = rectangles(16, 16, (0, 0, 4, 4), (8, 8, 12, 12))
    assert jitter((16, 16), (1.0, 1.0))(example(masks, crowd=(0,))).target.labels.tolist() == [2]


def test_padding_is_the_mean_colour_and_pixels_are_normalised_like_floats() -> None:
    config = PixelConfig(in_chans=2, mean=(0.25, 0.5), std=(0.5, 0.25))
    pixels = torch.tensor([[[51]], [[255]]], dtype=torch.uint8)
    assert torch.allclose(normalised(pixels, config), normalised(pixels / 255, config))
    assert normalised(pixels, config).flatten().tolist() == pytest.approx([-0.1, 2.0])
    empty = Example(pixels.expand(2, 4, 8), example(torch.zeros(0, 4, 8)).target, (4, 8), 0)
    moved = jitter((8, 8), (1.0, 1.0), pixels=config)(empty)
    assert not moved.image[:, 4:].any() and moved.image[0, :4].unique().tolist() == pytest.approx([-0.1])
    assert moved.target.masks.shape == (0, 8, 8) and moved.target.boxes.shape == (0, 4)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    canvas=st.tuples(st.integers(8, 64), st.integers(8, 64)),
    scale=st.floats(0.1, 2.0),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_image_fits_and_its_masks_stay_on_it(
    height: int, width: int, canvas: tuple[int, int], scale: float, flip: bool, seed: int
) -> None:
    masks = rectangles(height, width, (0, 0, width, height), (width // 3, height // 3, width, height))
    torch.manual_seed(seed)
    moved = jitter(canvas, (scale, scale), flip=flip)(example(masks))
    assert moved.image.shape[1:] == canvas and moved.target.masks.shape[1:] == canvas
    whole = moved.target.masks[0].bool()  # the first mask is the whole image
    assert whole[: moved.size[0], : moved.size[1]].all() and int(whole.sum()) == moved.size[0] * moved.size[1]
    assert moved.target.boxes[0].tolist() == [0, 0, moved.size[1], moved.size[0]]
    # Bilinear white on white is white: image and masks were cut alike.
    assert torch.allclose(moved.image[0], whole.float())
