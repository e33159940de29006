"""Block-wise and grid-wise masks: one count for every image, and the geometry that names them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcmae.errors import InputError
from fcmae.masking import (
    MASK_SAMPLERS,
    block_visible_ids,
    count_visible,
    grid_visible_ids,
    random_visible_ids,
    visible_from_ids,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masked_neighbours(ids: Tensor, grid: tuple[int, int]) -> float:
    """Share of the neighbours of masked patches that are masked too."""
    masked = (~visible_from_ids(ids, grid)).double()[:, None]
    inside = torch.ones_like(masked)
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    both = F.conv2d(masked, cross, padding=1) * masked
    return float(both.sum() / (F.conv2d(inside, cross, padding=1) * masked).sum())


@pytest.mark.parametrize("mask_ratio", [0.4, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("grid", [(14, 14), (7, 20), (3, 2), (1, 9)])
def test_blocks_keep_one_count_and_every_image_its_own(grid: tuple[int, int], mask_ratio: float) -> None:
    if int(grid[0] * grid[1] * (1 - mask_ratio)) == 0:
        with pytest.raises(InputError, match="got 0 visible"):
            block_visible_ids(64, grid, mask_ratio=mask_ratio, generator=seeded())
        return
    ids = block_visible_ids(64, grid, mask_ratio=mask_ratio, generator=seeded())
    assert ids.shape == (64, count_visible(grid[0] * grid[1], mask_ratio)) and ids.dtype == torch.int64
    assert bool((ids.diff(dim=1) > 0).all()) and int(ids.min()) >= 0 and int(ids.max()) < grid[0] * grid[1]
    assert len({tuple(row) for row in ids.tolist()}) > (32 if grid == (14, 14) else 1)
    assert torch.equal(ids, block_visible_ids(64, grid, mask_ratio=mask_ratio, generator=seeded()))
    assert not torch.equal(ids, block_visible_ids(64, grid, mask_ratio=mask_ratio, generator=seeded(1)))


def test_masked_patches_stand_in_blocks() -> None:
    """At random, half of a masked patch's neighbours are masked; in a block, most of them."""
    grid = (14, 14)
    blocks = block_visible_ids(256, grid, mask_ratio=0.5, generator=seeded())
    single = random_visible_ids(256, grid, mask_ratio=0.5, generator=seeded())
    assert masked_neighbours(single, grid) == pytest.approx(0.5, abs=0.02)
    assert masked_neighbours(blocks, grid) > 0.8


def test_the_last_block_is_cut_short_row_by_row() -> None:
    """20 of 400 patches is less than the smallest block: every mask is one rectangle, cut."""
    ids = block_visible_ids(64, (20, 20), mask_ratio=0.05, generator=seeded())
    for masked in ~visible_from_ids(ids, (20, 20)):
        y, x = masked.nonzero().unbind(1)
        box = masked[y.min() : y.max() + 1, x.min() : x.max() + 1]
        assert int(masked.sum()) == 20 and bool(box[:-1].all())
        assert not bool((box[-1].int().diff() > 0).any())  # the last row stops, and does not begin again


def test_the_grid_keeps_the_upper_left_of_every_four() -> None:
    ids = grid_visible_ids(3, (4, 6), mask_ratio=0.75)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[0, 2, 4, 12, 14, 16]] * 3
    fours = visible_from_ids(ids, (4, 6)).view(3, 2, 2, 3, 2).sum((2, 4))
    assert bool((fours == 1).all())
    # A side that 2 does not divide keeps the rest of a cell: 16 of 49.
    assert grid_visible_ids(1, (7, 7), mask_ratio=0.75).shape == (1, 16)


def test_the_grid_hides_three_quarters_and_nothing_else() -> None:
    with pytest.raises(InputError, match=r"expected 0.75, since grid sampling .* got 0.6"):
        grid_visible_ids(3, (4, 6), mask_ratio=0.6)


@pytest.mark.parametrize("name", MASK_SAMPLERS)
def test_every_sampler_draws_where_it_is_asked(name: str) -> None:
    ids = MASK_SAMPLERS[name](2, (4, 4), mask_ratio=0.75, generator=seeded(), device="meta")
    assert ids.device.type == "meta" and ids.shape == (2, 4)
