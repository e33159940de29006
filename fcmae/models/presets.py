"""The sizes of every encoder, in one table."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from fcmae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ConvNeXtV2Preset:
    """Blocks and width of each stage."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ViTPreset:
    """Blocks, width, attention heads, and pixels per token."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_heads: int
    stem_stride: int


@dataclass(frozen=True, kw_only=True)
class ConvMAEPreset:
    """Blocks, width and hidden features of the three stages, and attention heads of the last."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_heads: int
    mlp_ratio: tuple[int, ...]


# Woo et al. 2023, appendix A.1, and the authors' repository.
_CONVNEXTV2 = {
    "convnextv2_atto": ConvNeXtV2Preset(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320)),
    "convnextv2_femto": ConvNeXtV2Preset(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384)),
    "convnextv2_pico": ConvNeXtV2Preset(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512)),
    "convnextv2_nano": ConvNeXtV2Preset(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640)),
    "convnextv2_tiny": ConvNeXtV2Preset(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "convnextv2_small": ConvNeXtV2Preset(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "convnextv2_base": ConvNeXtV2Preset(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnextv2_large": ConvNeXtV2Preset(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "convnextv2_huge": ConvNeXtV2Preset(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816)),
}

# Blocks, width and heads: Dosovitskiy et al. 2021, table 1; tiny and small: Touvron et al. 2021, table 1.
_VIT = {
    "tiny": (12, 192, 3),
    "small": (12, 384, 6),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "huge": (32, 1280, 16),
}
# MAE takes patches of 16 and 14 pixels, MSN also 8, 7 and 4.
_VIT_PATCHES = (16, 14, 8, 7, 4)

# Base: the authors' repository, which holds no other size. The rest: what others wrote from the paper, a fork
# of FastConvMAE for small, DMJD and a denoising ConvMAE for large, the latter alone for huge. The weights
# released as large and huge have other ratios, and huge another patch (Alpha-VL/ConvMAE issue 32).
_CONVMAE = {
    "convmae_small": ConvMAEPreset(depths=(2, 2, 11), dims=(128, 256, 384), num_heads=6, mlp_ratio=(4, 4, 4)),
    "convmae_base": ConvMAEPreset(depths=(2, 2, 11), dims=(256, 384, 768), num_heads=12, mlp_ratio=(4, 4, 4)),
    "convmae_large": ConvMAEPreset(
        depths=(2, 2, 23), dims=(384, 768, 1024), num_heads=16, mlp_ratio=(8, 8, 4)
    ),
    "convmae_huge": ConvMAEPreset(
        depths=(2, 2, 31), dims=(768, 1024, 1280), num_heads=16, mlp_ratio=(8, 8, 4)
    ),
}

Preset = ConvNeXtV2Preset | ConvMAEPreset | ViTPreset

PRESETS: dict[str, Preset] = {
    **_CONVNEXTV2,
    **_CONVMAE,
    **{
        f"vit_{size}_patch{patch}": ViTPreset(
            depths=(depth,), dims=(dim,), num_heads=heads, stem_stride=patch
        )
        for size, (depth, dim, heads) in _VIT.items()
        for patch in _VIT_PATCHES
    },
}


def find_preset(name: str) -> Preset:
    """The preset of a backbone's name.

    Raises:
        InputError: unknown name; the nearest one is suggested.
    """
    require_name("backbone", "the name of an encoder", name, PRESETS)
    return PRESETS[name]


def require_name(argument: str, what: str, name: str, known: Iterable[str]) -> None:
    """Raise InputError, with the nearest of the known names, unless `name` is one of them."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
        raise InputError(f"{argument}: expected {what}, got {name!r}. {hint}")
