"""Which patches stay visible."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fcmae.errors import InputError
from fcmae.masking.parts import WHOLE, BatchPart, draw_uniform


def count_visible(patches: int, mask_ratio: float) -> int:
    """Visible patches of an image: `int(patches * (1 - mask_ratio))`, the original's count (19 of 49 at 0.6).

    Raises:
        InputError: 0 or all patches would be visible.
    """
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        raise InputError(
            f"mask_ratio: expected some of {patches} patches visible and some masked, got {kept} visible at "
            f"{mask_ratio:g}. Change the ratio, or take larger images or smaller patches."
        )
    return kept


def random_visible_ids(
    batch_size: int,
    grid: tuple[int, int],
    *,
    mask_ratio: float,
    part: BatchPart = WHOLE,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the same number of visible patches in every image, each image its own.

    Args:
        batch_size: Images.
        grid: Patches of an image, (Gh, Gw).
        mask_ratio: Share of the patches that is masked.
        part: Which of a larger batch's images these are; the masks are drawn for all of it.
        generator: Source of randomness, on the CPU or on `device`; drawn on its own device.
        device: Where the ids are wanted.
    Returns:
        Row-major patch ids, ascending, int64 [B, K].
    """
    patches = grid[0] * grid[1]
    kept = count_visible(patches, mask_ratio)
    source = device if generator is None else generator.device
    noise = draw_uniform(batch_size, patches, part=part, generator=generator, device=source)
    ids = noise.argsort(dim=1)[:, :kept].sort(dim=1).values
    return ids.to(device or ids.device, non_blocking=True)


def block_visible_ids(
    batch_size: int,
    grid: tuple[int, int],
    *,
    mask_ratio: float,
    part: BatchPart = WHOLE,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw masks that are unions of rectangles, as in BEiT, with the same number of visible patches each.

    Rectangles are masked one by one: of an area between 16 of BEiT's 196 patches and what is still to be
    masked, of an aspect ratio between 0.3 and 1 / 0.3, anywhere. The last one is cut short, row by row, where
    it would mask too many. Waits for the generator's device once a rectangle; a CPU's waits for nothing.

    Args, returns:
        As `random_visible_ids`.
    Paper: Bao et al. 2021, BEiT, algorithm 1; He et al. 2021, MAE, table 1f and figure 6.
    """
    height, width = grid
    patches = height * width
    kept = count_visible(patches, mask_ratio)
    source = device if generator is None else generator.device
    smallest = max(1.0, patches * 16 / 196)
    y = torch.arange(height, device=source)[None, :, None]
    x = torch.arange(width, device=source)[None, None, :]
    masked = torch.zeros(batch_size, patches, dtype=torch.bool, device=source)
    while (missing := patches - kept - masked.sum(dim=1, keepdim=True)).any():
        # An image's rectangles do not depend on how many more rounds the others need.
        draws = draw_uniform(4, batch_size, 1, part=part, dim=1, generator=generator, device=source)
        area = smallest + draws[0] * (missing - smallest).clamp(min=0)
        aspect = torch.exp((2 * draws[1] - 1) * math.log(1 / 0.3))
        rows = (area * aspect).sqrt().round().clamp(1, height)
        columns = (area / aspect).sqrt().round().clamp(1, width)
        top = (draws[2] * (height - rows + 1)).floor()
        left = (draws[3] * (width - columns + 1)).floor()
        inside_y = (y >= top[..., None]) & (y < (top + rows)[..., None])
        inside_x = (x >= left[..., None]) & (x < (left + columns)[..., None])
        new = (inside_y & inside_x).flatten(1) & ~masked
        masked |= new & (new.cumsum(dim=1) <= missing)
    ids = masked.to(torch.uint8).argsort(dim=1, stable=True)[:, :kept]
    return ids.to(device or ids.device, non_blocking=True)


def grid_visible_ids(
    batch_size: int,
    grid: tuple[int, int],
    *,
    mask_ratio: float,
    part: BatchPart = WHOLE,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Keep one of every four patches: the upper left of each 2 x 2, in every image and at every draw.

    The paper does not say which of the four. Nothing is random, so `generator` gives no more than
    the device, and `part` nothing.

    Args, returns:
        As `random_visible_ids`.
    Raises:
        InputError: `mask_ratio` is not 0.75.
    Paper: He et al. 2021, MAE, table 1f and figure 6.
    """
    if mask_ratio != 0.75:
        raise InputError(
            f"mask_ratio: expected 0.75, since grid sampling keeps one of every four, got {mask_ratio:g}. "
            "Set it to 0.75, or take random or block sampling."
        )
    source = device if generator is None else generator.device
    rows = torch.arange(0, grid[0], 2, device=source)[:, None] * grid[1]
    ids = (rows + torch.arange(0, grid[1], 2, device=source)).reshape(1, -1).repeat(batch_size, 1)
    return ids.to(device or ids.device, non_blocking=True)


MASK_SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "random": random_visible_ids,
    "block": block_visible_ids,
    "grid": grid_visible_ids,
}
"""The ways to sample a mask that MAE's paper compares."""
