"""Masks and geometry."""

import pytest
import torch
from torch.nn import functional as F

from fcmae.errors import InputError
from fcmae.masking import (
    count_visible,
    patchify,
    random_visible_ids,
    space_to_depth,
    unpatchify,
    visible_from_ids,
)


def test_ids_are_ascending_unique_and_each_images_own() -> None:
    ids = random_visible_ids(64, (7, 7), mask_ratio=0.6, generator=torch.Generator().manual_seed(0))
    assert ids.shape == (64, 19) and ids.dtype == torch.int64
    assert bool((ids.diff(dim=1) > 0).all()) and int(ids.min()) >= 0 and int(ids.max()) < 49
    assert len({tuple(row) for row in ids.tolist()}) == 64
    visible = visible_from_ids(ids, (7, 7))
    assert torch.equal(visible.flatten(1).nonzero()[:, 1].view(64, 19), ids)
    # Every patch is visible about equally often: 64 * 19 / 49 = 24.8, standard deviation 3.9.
    assert int(visible.sum(0).min()) > 10 and int(visible.sum(0).max()) < 40


def test_the_same_generator_draws_the_same_mask() -> None:
    draws = [
        random_visible_ids(4, (5, 3), mask_ratio=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"), [(49, 0.6, 19), (49, 0.75, 12), (196, 0.75, 49), (16, 0.6, 6)]
)
def test_visible_count(patches: int, ratio: float, kept: int) -> None:
    assert count_visible(patches, ratio) == kept


@pytest.mark.parametrize(("patches", "ratio"), [(49, 0.99), (49, 0.0), (1, 0.5)])
def test_nothing_or_everything_visible_is_refused(patches: int, ratio: float) -> None:
    with pytest.raises(InputError, match="mask_ratio: expected some"):
        count_visible(patches, ratio)


def test_patchify_has_maes_order_and_an_inverse() -> None:
    images = torch.randn(2, 5, 64, 96)
    patches = patchify(images, 16)
    assert patches.shape == (2, 24, 16 * 16 * 5)
    # Patch 7 is row 1, column 1 of a grid six wide; pixel (2, 3), channel 4.
    assert patches[1, 7, (2 * 16 + 3) * 5 + 4] == images[1, 4, 16 + 2, 16 + 3]
    assert torch.equal(unpatchify(patches, 16, grid=(4, 6)), images)


def test_space_to_depth_matches_a_convolutions_kernel() -> None:
    images, weight = torch.randn(2, 3, 8, 12), torch.randn(5, 3, 4, 4)
    expected = F.conv2d(images, weight, stride=4).permute(0, 2, 3, 1)
    assert torch.allclose(F.linear(space_to_depth(images, 4), weight.flatten(1)), expected, atol=1e-5)
