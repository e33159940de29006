"""Encoders and decoders."""

from typing import get_args

from fcmae.models.convnextv2 import ConvNeXtV2Encoder
from fcmae.models.decoders import ConvNeXtDecoder
from fcmae.models.presets import PRESETS, find_preset, require_name
from sparse_ops import Backend, Scope

__all__ = [
    "PRESETS",
    "ConvNeXtDecoder",
    "ConvNeXtV2Encoder",
    "create_backbone",
    "find_preset",
    "require_name",
]


def create_backbone(
    name: str,
    *,
    in_chans: int = 3,
    drop_path: float = 0.0,
    grn_scope: Scope = "image",
    backend: str = "auto",
    depths: tuple[int, ...] | None = None,
    dims: tuple[int, ...] | None = None,
    stem_stride: int | None = None,
    kernel_size: int = 7,
    mlp_ratio: int = 4,
) -> ConvNeXtV2Encoder:
    """Build an encoder by its name; any field of the preset can be overridden.

    Args:
        name: `convnextv2_{atto,femto,pico,nano,tiny,small,base,large,huge}`.
        in_chans: Channels of the images.
        drop_path: Stochastic depth of the last block, rising linearly from 0.
        grn_scope: Sites of GRN's statistics, "image" or "batch".
        backend: Engine of the sparse operations.
        depths: Blocks of each stage; None: the preset's.
        dims: Width of each stage; None: the preset's.
        stem_stride: Pixels per site of the first stage; None: 4.
        kernel_size: Side of the depthwise kernels, odd.
        mlp_ratio: Width of the hidden features of a block as a multiple of its own.
    Raises:
        InputError: unknown name (the nearest one is suggested), or stages that do not fit together.
    """
    preset = find_preset(name)
    require_name("grn_scope", "sites of GRN's statistics", grn_scope, get_args(Scope))
    require_name("backend", "an engine of the sparse operations", backend, Backend)
    return ConvNeXtV2Encoder(
        depths or preset.depths,
        dims or preset.dims,
        in_chans=in_chans,
        stem_stride=4 if stem_stride is None else stem_stride,
        kernel_size=kernel_size,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
        grn_scope=grn_scope,
        backend=backend,
    )
