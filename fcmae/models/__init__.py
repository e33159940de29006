"""Encoders and decoders."""

import inspect
from typing import get_args

from fcmae.config import Gating
from fcmae.errors import InputError
from fcmae.models.convmae import ConvMAEEncoder
from fcmae.models.convnext_classifier import ConvNeXtClassifier
from fcmae.models.convnextv2 import ConvNeXtV2Encoder
from fcmae.models.decoders import ConvNeXtDecoder, TransformerDecoder
from fcmae.models.encoder import Encoder
from fcmae.models.presets import (
    PRESETS,
    ConvMAEPreset,
    ConvNeXtV2Preset,
    ViTPreset,
    find_preset,
    require_name,
)
from fcmae.models.unet import UNetDecoder
from fcmae.models.vit import Positions, ViTEncoder
from sparse_ops import Backend, Scope

__all__ = [
    "BACKBONE_OPTIONS",
    "PRESETS",
    "ConvMAEEncoder",
    "ConvMAEPreset",
    "ConvNeXtClassifier",
    "ConvNeXtDecoder",
    "ConvNeXtV2Encoder",
    "Encoder",
    "TransformerDecoder",
    "UNetDecoder",
    "ViTEncoder",
    "create_backbone",
    "find_preset",
    "require_name",
]

# The encoder of each family: its arguments are the preset's fields and the options below.
_FAMILIES = {
    ConvNeXtV2Preset: ConvNeXtV2Encoder,
    ConvMAEPreset: ConvMAEEncoder,
    ViTPreset: ViTEncoder,
}


def create_backbone(
    name: str,
    *,
    in_chans: int = 3,
    drop_path: float = 0.0,
    backend: str = "auto",
    depths: tuple[int, ...] | None = None,
    dims: tuple[int, ...] | None = None,
    mlp_ratio: int | None = None,
    kernel_size: int | None = None,
    stem_stride: int | None = None,
    gating: Gating | None = None,
    grn_scope: Scope | None = None,
    num_heads: int | None = None,
    positions: Positions | None = None,
) -> Encoder:
    """Build an encoder by its name; any field of the preset can be overridden.

    None stands for the preset's value. An option that the family lacks (`grn_scope` where there is no GRN) is
    refused.

    Args:
        name: `convnextv2_{atto,femto,pico,nano,tiny,small,base,large,huge}`,
            `convmae_{small,base,large,huge}` or `vit_{tiny,small,base,large,huge}_patch{16,14,8,7,4}`.
        in_chans: Channels of the images.
        drop_path: Stochastic depth of the last block, rising linearly.
        backend: Engine of the sparse operations.
        depths: Blocks of each stage.
        dims: Width of each stage.
        mlp_ratio: Width of the hidden features of a block as a multiple of its own.
        kernel_size: Side of the depthwise kernels, odd.
        stem_stride: Pixels per site of the first stage.
        gating: What blocks have in GRN's place: "grn" itself, "none", "layer_scale", ...; see FCMAEConfig.
        grn_scope: Sites of GRN's statistics, "image" or "batch".
        num_heads: Attention heads.
        positions: Position embeddings of tokens, "fixed" or "learnt".
    Raises:
        InputError: unknown name (the nearest one is suggested), an option that the family lacks, or stages
            that do not fit together.
    """
    preset = find_preset(name)
    require_name("backend", "an engine of the sparse operations", backend, Backend)
    if grn_scope is not None:
        require_name("grn_scope", "sites of GRN's statistics", grn_scope, get_args(Scope))
    options = {
        "backend": None if backend == Backend.AUTO else backend,
        "depths": depths,
        "dims": dims,
        "mlp_ratio": mlp_ratio,
        "kernel_size": kernel_size,
        "stem_stride": stem_stride,
        "gating": gating,
        "grn_scope": grn_scope,
        "num_heads": num_heads,
        "positions": positions,
    }
    given = {option: value for option, value in options.items() if value is not None}
    family = _FAMILIES[type(preset)]
    if foreign := sorted(given.keys() - inspect.signature(family).parameters.keys()):
        raise InputError(f"create_backbone: expected options that {name} has, got {', '.join(foreign)}.")
    return family(**{**vars(preset), **given}, in_chans=in_chans, drop_path=drop_path)


BACKBONE_OPTIONS = tuple(inspect.signature(create_backbone).parameters)[1:]
"""Names of what `create_backbone` takes beside the name."""
