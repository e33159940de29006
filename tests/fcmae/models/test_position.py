"""Position embeddings: the formula, other grids, and what a state dict may bring."""

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from fcmae.errors import InputError
from fcmae.models.position import fit_positions, positions_at, sincos_positions


def test_the_fixed_embedding_is_the_papers() -> None:
    grid, dim = (3, 5), 16
    embedding = sincos_positions(grid, dim, prefix=1, dtype=torch.float64)
    assert embedding.shape == (1, 16, dim) and not embedding[0, 0].any()
    for y in range(grid[0]):
        for x in range(grid[1]):
            # Each direction has half the width, and there the 1-D embedding of that width.
            expected = [
                wave(place / 10_000 ** (k / (dim / 4)))
                for place in (x, y)
                for wave in (math.sin, math.cos)
                for k in range(dim // 4)
            ]
            row = embedding[0, 1 + y * grid[1] + x]
            assert torch.allclose(row, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_another_grid_is_computed_or_interpolated_as_timm_does() -> None:
    fixed = sincos_positions((4, 4), 8, prefix=1)
    there = positions_at(fixed, (6, 3), own_grid=(4, 4), prefix=1, fixed=True)
    assert torch.equal(there, sincos_positions((6, 3), 8, prefix=1))
    learnt = torch.randn(1, 9, 8)
    there = positions_at(learnt, (6, 3), own_grid=(2, 4), prefix=1, fixed=False)
    assert torch.equal(there, resample_abs_pos_embed(learnt, [6, 3], [2, 4], num_prefix_tokens=1))
    assert positions_at(learnt, (2, 4), own_grid=(2, 4), prefix=1, fixed=False) is learnt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(14, 14), (6, 10), (1, 7)])
def test_loaded_sincos_is_recognised_whatever_its_grid(grid: tuple[int, int], dtype: torch.dtype) -> None:
    own = sincos_positions((8, 4), 16, prefix=1)
    loaded = sincos_positions(grid, 16, prefix=1, dtype=dtype)
    fitted, fixed = fit_positions(loaded, own, own_grid=(8, 4), prefix=1)
    assert fixed and torch.equal(fitted, own)


def test_loaded_learnt_embeddings_are_kept_or_interpolated() -> None:
    own = sincos_positions((8, 4), 16, prefix=1)
    same = torch.randn(1, 33, 16) * 0.02
    assert fit_positions(same, own, own_grid=(8, 4), prefix=1) == (same, False)
    square = torch.randn(1, 26, 16) * 0.02
    fitted, fixed = fit_positions(square, own, own_grid=(8, 4), prefix=1)
    assert not fixed
    assert torch.equal(fitted, resample_abs_pos_embed(square, [8, 4], [5, 5], num_prefix_tokens=1))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 26, 8), r"expected \[1, L, 16\], got \[1, 26, 8\]"), ((1, 31, 16), "8 x 4 patches .* got 30")],
)
def test_embeddings_that_fit_nowhere_are_named(shape: tuple[int, ...], message: str) -> None:
    own = sincos_positions((8, 4), 16, prefix=1)
    with pytest.raises(InputError, match=message):
        fit_positions(torch.randn(shape), own, own_grid=(8, 4), prefix=1)


def test_the_width_must_hold_two_sines_and_two_cosines() -> None:
    with pytest.raises(InputError, match="divisible by 4 for sin-cos positions, got 6"):
        sincos_positions((2, 2), 6)
