"""What an encoder's step costs as more of the image is hidden: forward and backward on visible patches."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from fcmae.masking import patch_grid, random_visible_ids
from fcmae.models import Encoder
from sparse_ops import ActiveSites


def visible_sites(
    encoder: Encoder, *, batch_size: int, image_size: tuple[int, int], patch_size: int, mask_ratio: float
) -> ActiveSites:
    """Random visible patches as the encoder's first sites; with ratio 0 all of them."""
    grid = patch_grid(image_size, patch_size)
    if mask_ratio == 0:
        ids = torch.arange(grid[0] * grid[1]).repeat(batch_size, 1)
    else:
        ids = random_visible_ids(batch_size, grid, mask_ratio=mask_ratio)
    return ActiveSites.from_visible_ids(ids, grid=grid, tile=patch_size // encoder.strides[0])


def measure_mask_ratios(
    encoders: Mapping[str, tuple[Encoder, int]],
    *,
    ratios: Sequence[float],
    batch_size: int,
    image_size: tuple[int, int],
    steps: int,
) -> dict[str, list[float]]:
    """Seconds of a step of each encoder at each mask ratio, on this process' CPU threads.

    All cases take turns, so that a change of the machine's speed meets them alike; each value is the median
    of `steps` rounds after one that is not counted.

    Args:
        encoders: Name -> (encoder, its patch size in pixels).
        ratios: Shares of the patches that are hidden; 0 hides none.
        batch_size: Images of a step.
        image_size: (H, W) in pixels.
        steps: Rounds that count.
    Returns:
        Name -> one value a ratio.
    """
    cases = {
        (name, ratio): (encoder, patch_size)
        for name, (encoder, patch_size) in encoders.items()
        for ratio in ratios
    }
    seconds: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    for step in range(steps + 1):
        for case, (encoder, patch_size) in cases.items():
            images = torch.randn(batch_size, encoder.in_chans, *image_size)
            sites = visible_sites(
                encoder,
                batch_size=batch_size,
                image_size=image_size,
                patch_size=patch_size,
                mask_ratio=case[1],
            )
            encoder.zero_grad(set_to_none=True)
            began = time.perf_counter()
            encoder.embed(images, sites=sites).square().mean().backward()
            if step:
                seconds[case].append(time.perf_counter() - began)
    return {name: [statistics.median(seconds[name, ratio]) for ratio in ratios] for name in encoders}
