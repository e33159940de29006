"""Which patches stay visible."""

import torch
from torch import Tensor

from fcmae.errors import InputError


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
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the same number of visible patches in every image, each image its own.

    Args:
        batch_size: Images.
        grid: Patches of an image, (Gh, Gw).
        mask_ratio: Share of the patches that is masked.
        generator: Source of randomness, on the CPU or on `device`; drawn on its own device.
        device: Where the ids are wanted.
    Returns:
        Row-major patch ids, ascending, int64 [B, K].
    """
    patches = grid[0] * grid[1]
    kept = count_visible(patches, mask_ratio)
    source = device if generator is None else generator.device
    noise = torch.rand(batch_size, patches, generator=generator, device=source)
    ids = noise.argsort(dim=1)[:, :kept].sort(dim=1).values
    return ids.to(device or ids.device, non_blocking=True)
