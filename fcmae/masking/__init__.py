"""Patch masks: how they are drawn, and the geometry of patches and sites."""

from fcmae.masking.geometry import patch_grid, patchify, space_to_depth, unpatchify, visible_from_ids
from fcmae.masking.sampling import count_visible, random_visible_ids

__all__ = [
    "count_visible",
    "patch_grid",
    "patchify",
    "random_visible_ids",
    "space_to_depth",
    "unpatchify",
    "visible_from_ids",
]
