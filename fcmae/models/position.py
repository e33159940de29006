"""Position embeddings of a grid of patches, fixed or learnt, under the names that MAE and timm give them."""

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from fcmae.errors import InputError

_SAME = 0.01
"""Two embeddings are the same within this, bfloat16 files included; learnt ones differ by about 1."""


def sincos_positions(
    grid: tuple[int, int],
    dim: int,
    *,
    prefix: int = 0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The fixed embedding of every patch of a grid, computed in float64.

    With w_k = 10000 ** (-4 k / dim), k < dim / 4, patch (y, x) has (sin x w, cos x w, sin y w, cos y w).

    Args:
        grid: Patches of an image, (Gh, Gw).
        dim: Width, divisible by 4.
        prefix: Tokens before the patches, such as the class token; theirs are zero.
        device: Where the embedding is wanted.
        dtype: Of the embedding.
    Returns:
        [1, prefix + Gh * Gw, dim], patches in row-major order.
    Raises:
        InputError: `dim` is not divisible by 4.
    Paper: Vaswani et al. 2017, section 3.5, for each of the two directions as in MAE.
    """
    if dim < 4 or dim % 4:
        raise InputError(f"dim: expected a width divisible by 4 for sin-cos positions, got {dim}.")
    steps = torch.arange(dim // 4, dtype=torch.float64, device=device)
    frequencies = 10_000.0 ** (-4 * steps / dim)
    height, width = (
        torch.arange(side, dtype=torch.float64, device=device)[:, None] * frequencies for side in grid
    )
    rows = torch.cat([height.sin(), height.cos()], dim=1)[:, None].expand(-1, grid[1], -1)
    columns = torch.cat([width.sin(), width.cos()], dim=1)[None].expand(grid[0], -1, -1)
    patches = torch.cat([columns, rows], dim=2).reshape(1, grid[0] * grid[1], dim)
    return torch.cat([patches.new_zeros(1, prefix, dim), patches], dim=1).to(dtype)


def positions_at(
    embedding: Tensor, grid: tuple[int, int], *, own_grid: tuple[int, int], prefix: int, fixed: bool
) -> Tensor:
    """An embedding [1, prefix + L, D] made for `own_grid`, for another grid.

    A fixed embedding is computed anew; a learnt one is interpolated as timm does it, bicubic with
    antialiasing.
    """
    if grid == own_grid:
        return embedding
    if fixed:
        dim = embedding.shape[-1]
        return sincos_positions(grid, dim, prefix=prefix, device=embedding.device, dtype=embedding.dtype)
    return resample_abs_pos_embed(
        embedding, new_size=list(grid), old_size=list(own_grid), num_prefix_tokens=prefix
    )


def fit_positions(
    loaded: Tensor, own: Tensor, *, own_grid: tuple[int, int], prefix: int
) -> tuple[Tensor, bool]:
    """Loaded position embeddings for `own_grid`, and whether they are the fixed ones.

    Args:
        loaded: [1, prefix + L', D]. If they are learnt, of the same grid or of a square one.
        own: [1, prefix + L, D], for the dtype and the device.
        own_grid: Patches that `own` is made for, (Gh, Gw).
        prefix: Tokens before the patches.
    Returns:
        ([1, prefix + L, D], True for sin-cos embeddings of any grid).
    Raises:
        InputError: another width, or learnt for a grid that is neither the same nor square.
    """
    count, dim = loaded.shape[1] - prefix, loaded.shape[2]
    if dim != own.shape[2] or count < 1:
        raise InputError(
            f"position embedding: expected [1, L, {own.shape[2]}], got {list(loaded.shape)}. "
            "Take an encoder of that width."
        )
    for height in (side for side in range(1, count + 1) if count % side == 0):
        fixed = sincos_positions((height, count // height), dim, prefix=prefix, device=loaded.device)
        if torch.allclose(fixed, loaded.to(fixed.dtype), atol=_SAME, rtol=0.0):
            return sincos_positions(own_grid, dim, prefix=prefix, device=own.device, dtype=own.dtype), True
    side = round(count**0.5)
    if count != own_grid[0] * own_grid[1] and side * side != count:
        raise InputError(
            f"position embedding: expected learnt ones of {own_grid[0]} x {own_grid[1]} patches or of a "
            f"square grid, got {count} patches. Build the encoder for the images they were learnt on."
        )
    grid = own_grid if count == own_grid[0] * own_grid[1] else (side, side)
    return positions_at(loaded, own_grid, own_grid=grid, prefix=prefix, fixed=False), False
