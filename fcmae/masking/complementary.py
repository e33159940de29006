"""Masks of one image that together show each patch once."""

import torch
from torch import Tensor

from fcmae.masking.parts import WHOLE, BatchPart, draw_uniform


def complementary_visible_ids(
    batch_size: int,
    grid: tuple[int, int],
    *,
    masks: int,
    part: BatchPart = WHOLE,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Deal the patches of every image out to masks of equal size: each patch is visible in one.

    Args:
        batch_size: Images.
        grid: Patches of an image, (Gh, Gw).
        masks: Masks of an image, a divisor of Gh * Gw.
        part: Which of a larger batch's images these are; the masks are drawn for all of it.
        generator: Source of randomness, on the CPU or on `device`; drawn on its own device.
        device: Where the ids are wanted.
    Returns:
        Row-major patch ids, ascending in each mask, int64 [B, masks, Gh * Gw / masks].
    Paper: FastConvMAE (Alpha-VL, 2022).
    """
    source = device if generator is None else generator.device
    noise = draw_uniform(batch_size, grid[0] * grid[1], part=part, generator=generator, device=source)
    ids = noise.argsort(dim=1).view(batch_size, masks, -1).sort(dim=2).values
    return ids.to(device or ids.device, non_blocking=True)
