"""Patch masks: how they are drawn, and the geometry of patches and sites."""

from fcmae.masking.complementary import complementary_visible_ids
from fcmae.masking.geometry import patch_grid, patchify, space_to_depth, unpatchify, visible_from_ids
from fcmae.masking.parts import WHOLE, BatchPart
from fcmae.masking.sampling import (
    MASK_SAMPLERS,
    block_visible_ids,
    count_visible,
    grid_visible_ids,
    random_visible_ids,
)

__all__ = [
    "MASK_SAMPLERS",
    "WHOLE",
    "BatchPart",
    "block_visible_ids",
    "complementary_visible_ids",
    "count_visible",
    "grid_visible_ids",
    "patch_grid",
    "patchify",
    "random_visible_ids",
    "space_to_depth",
    "unpatchify",
    "visible_from_ids",
]
