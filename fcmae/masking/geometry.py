"""Images as grids of patches and of sites."""

import torch
from torch import Tensor

from fcmae.errors import InputError


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Patches of an image, (Gh, Gw).

    Raises:
        InputError: a side is not divisible by `patch_size`.
    """
    height, width = image_size
    if height % patch_size or width % patch_size or height < patch_size or width < patch_size:
        raise InputError(
            f"image_size: expected sides divisible by the patch size {patch_size}, got {height} x {width}. "
            f"Nearest: {_nearest(height, patch_size)} x {_nearest(width, patch_size)}."
        )
    return height // patch_size, width // patch_size


def _nearest(side: int, patch_size: int) -> int:
    return max(1, round(side / patch_size)) * patch_size


def visible_from_ids(ids: Tensor, grid: tuple[int, int]) -> Tensor:
    """Visible patch ids, int64 [B, K] -> bool [B, Gh, Gw], True = kept."""
    visible = torch.zeros(ids.shape[0], grid[0] * grid[1], dtype=torch.bool, device=ids.device)
    return visible.scatter(1, ids, True).view(-1, *grid)


def space_to_depth(images: Tensor, stride: int) -> Tensor:
    """Every `stride x stride` square of pixels as one site: [B, C, H, W] -> [B, H / s, W / s, C * s * s].

    The last axis is ordered (C, y, x), like the kernel of a convolution with kernel = stride = s.
    """
    batch_size, channels, height, width = images.shape
    squares = images.reshape(batch_size, channels, height // stride, stride, width // stride, stride)
    squares = squares.permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch_size, height // stride, width // stride, channels * stride * stride)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, L, patch_size**2 * C], pixels of a patch ordered (y, x, C) as in MAE."""
    gh, gw = patch_grid((images.shape[2], images.shape[3]), patch_size)
    patches = images.reshape(images.shape[0], images.shape[1], gh, patch_size, gw, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(images.shape[0], gh * gw, -1)


def unpatchify(patches: Tensor, patch_size: int, *, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`: [B, L, patch_size**2 * C] -> [B, C, H, W] with H = Gh * patch_size."""
    gh, gw = grid
    squares = patches.reshape(patches.shape[0], gh, gw, patch_size, patch_size, -1)
    return squares.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, gh * patch_size, gw * patch_size)
