"""Crops for training: image and labels keep to each other, whatever the size, the scale and the crop."""

import pytest
import torch
from torch import Tensor

from fcmae.config import SegmentDataConfig
from fcmae.downstream.segmentation.dataset import IGNORED, Example
from fcmae.downstream.segmentation.transforms import (
    RandomCrop,
    fitting_scale,
    largest_share,
    normalised,
)


def config(**options: object) -> SegmentDataConfig:
    plain = {"image_size": 32, "resize": None, "scale": (1.0, 1.0), "jitter": False, "max_class_share": 1.0}
    return SegmentDataConfig(**{**plain, "mean": (0.0,) * 3, "std": (1.0,) * 3, **options})


def striped(height: int, width: int, *, cell: int = 8) -> Example:
    """Squares of 16 classes whose colour tells the class."""
    y, x = torch.arange(height)[:, None] // cell, torch.arange(width) // cell
    labels = (y * 5 + x) % 16
    return Example((labels * 16).to(torch.uint8).expand(3, -1, -1), labels, (height, width), 7)


def class_of(image: Tensor) -> Tensor:
    """The class that a colour tells."""
    return (image[0] * 255 / 16).round().long()


@pytest.mark.parametrize("size", [(100, 140), (33, 200), (32, 32)])
def test_crop_is_a_part_of_image_and_labels(size: tuple[int, int]) -> None:
    example = striped(*size)
    for seed in range(20):
        torch.manual_seed(seed)
        found = RandomCrop(config=config(flip=False))(example)
        assert found.image.shape == (3, 32, 32) and found.size == (32, 32) and found.number == 7
        assert torch.equal(class_of(found.image), found.labels)
        parts = example.labels.unfold(0, 32, 1).unfold(1, 32, 1)
        assert (parts == found.labels).flatten(2).all(dim=2).any()


def test_flip_mirrors_both() -> None:
    example, seen = striped(32, 32), set()
    for seed in range(8):
        torch.manual_seed(seed)
        found = RandomCrop(config=config())(example)
        assert torch.equal(class_of(found.image), found.labels)
        seen.add(torch.equal(found.labels, example.labels))
        assert torch.equal(found.labels, example.labels) or torch.equal(found.labels.flip(-1), example.labels)
    assert seen == {True, False}


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scales_image_and_labels_alike(factor: float) -> None:
    example = striped(128, 160, cell=32)
    torch.manual_seed(0)
    found = RandomCrop(config=config(image_size=64, scale=(factor, factor), flip=False))(example)
    inside = (class_of(found.image) == found.labels).float().mean()
    assert inside > 0.9  # but for the blend at edges
    whole = torch.nn.functional.interpolate(
        example.labels[None, None].float(), scale_factor=factor, mode="nearest-exact"
    )[0, 0].long()
    parts = whole.unfold(0, 64, 1).unfold(1, 64, 1)
    if factor < 1:  # 64 x 80: the crop is as high as the image
        assert (parts == found.labels).flatten(2).all(dim=2).any()
    else:
        assert float((parts == found.labels).flatten(2).float().mean(dim=2).max()) > 0.95


def test_small_images_stand_in_the_corner() -> None:
    example = striped(20, 50)
    torch.manual_seed(0)
    found = RandomCrop(config=config(flip=False))(example)
    assert found.size == (20, 32)
    assert (found.labels[20:] == IGNORED).all() and (found.labels[:20] != IGNORED).all()
    assert not found.image[:, 20:].any() and found.image[:, :20].any()


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [((300, 400), (512, 2048), 512 / 300), ((100, 1000), (512, 2048), 2.048), ((9, 9), None, 1.0)],
)
def test_size_at_scale_1(size: tuple[int, int], resize: tuple[int, int] | None, expected: float) -> None:
    assert fitting_scale(size, resize) == pytest.approx(expected)


def test_crops_of_one_class_are_drawn_anew() -> None:
    labels = torch.zeros(32, 320, dtype=torch.int64)
    labels[:, 96:128] = torch.arange(32) % 4
    example = Example(torch.zeros(3, 32, 320, dtype=torch.uint8), labels, (32, 320), 0)
    shares = {}
    for limit in (1.0, 0.75):
        draws = []
        for seed in range(60):
            torch.manual_seed(seed)
            draws.append(largest_share(RandomCrop(config=config(max_class_share=limit))(example).labels))
        shares[limit] = sum(share < 0.75 for share in draws)
    assert shares[0.75] > 3 * shares[1.0] > 0


def test_share_is_of_annotated_pixels() -> None:
    assert largest_share(torch.tensor([[IGNORED, 1], [1, 2]])) == pytest.approx(2 / 3)
    assert largest_share(torch.full((2, 2), IGNORED)) == 1.0


def test_jitter_changes_colours_only() -> None:
    example = striped(32, 32)._replace(image=torch.full((3, 32, 32), 100, dtype=torch.uint8))
    means = set()
    for seed in range(6):
        torch.manual_seed(seed)
        found = RandomCrop(config=config(jitter=True, flip=False))(example)
        assert torch.equal(found.labels, example.labels) and found.image.isfinite().all()
        means.add(round(float(found.image.mean()), 4))
    assert len(means) > 2


def test_normalises_both_depths_alike() -> None:
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    data = config(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    expected = (image / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.25, 2.0])[
        :, None, None
    ]
    assert torch.allclose(normalised(image, data), expected)
    assert torch.allclose(normalised(image / 255, data), expected)
