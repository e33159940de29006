"""Families of networks: each has its own names in the middle, and the formats that meet there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fcmae.convert.formats import Format
from fcmae.convert.formats.convmae import FORMATS as CONVMAE_FORMATS
from fcmae.convert.formats.convnextv2 import FORMATS as CONVNEXTV2_FORMATS
from fcmae.convert.formats.vit import FORMATS as VIT_FORMATS
from fcmae.convert.networks import convmae, convnextv2, vit
from fcmae.convert.networks.network import Network
from fcmae.convert.report import shorten
from fcmae.convert.verify.convnextv2 import compare_outputs, dense_model
from fcmae.convert.verify.differences import StageDifference
from fcmae.convert.verify.transformers import compare_convmae, compare_vit, dense_vit
from fcmae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Family:
    """The formats of one kind of network, and how to tell which network of that kind weights are of."""

    name: str
    formats: Mapping[str, Format]
    from_config: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Network]
    """Of a pretraining checkpoint's config and its weights under our names."""
    from_shapes: Callable[[Mapping[str, Tensor], Any], Network]
    """Of weights under our names, and the `image_size` of the config that they come with, or None."""
    compare: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Format, Any], list[StageDifference]]
    """(source's weights under our names, converted ones, their format, architecture) -> how far the outputs
    are apart."""
    dense_model: Callable[[Mapping[str, Tensor], Format, Any, float], nn.Module] | None
    """(weights, their format, architecture, drop path rate) -> timm's model; None: it has none."""
    dynamic: tuple[int, ...]
    """Axes of timm's input [B, C, H, W] that may have any size."""
    folds: Mapping[str, str]
    """Our name of a LayerNorm -> that of the linear layer which alone reads it."""


CONVNEXTV2 = Family(
    name="ConvNeXt V2",
    formats=CONVNEXTV2_FORMATS,
    from_config=convnextv2.from_config,
    from_shapes=lambda weights, image_size: convnextv2.from_shapes(weights),
    compare=compare_outputs,
    dense_model=dense_model,
    dynamic=(0, 2, 3),
    # Not the stem's: a depthwise convolution with padding and a residual read it.
    folds={
        "encoder.stages.{stage}.downsample.0": "encoder.stages.{stage}.downsample.1",
        "encoder.stages.{stage}.blocks.{block}.norm": "encoder.stages.{stage}.blocks.{block}.mlp.fc1",
        "head.norm": "head.fc",
    },
)
VIT = Family(
    name="ViT",
    formats=VIT_FORMATS,
    from_config=vit.from_config,
    from_shapes=vit.from_shapes,
    compare=compare_vit,
    dense_model=dense_vit,
    dynamic=(0,),
    folds={
        "encoder.blocks.{block}.norm1": "encoder.blocks.{block}.attn.qkv",
        "encoder.blocks.{block}.norm2": "encoder.blocks.{block}.mlp.fc1",
        "head.norm": "head.fc",
    },
)
CONVMAE = Family(
    name="ConvMAE",
    formats=CONVMAE_FORMATS,
    from_config=convmae.from_config,
    from_shapes=lambda weights, image_size: convmae.from_shapes(weights),
    compare=compare_convmae,
    dense_model=None,
    dynamic=(0,),
    folds={
        "encoder.blocks1.{block}.norm1": "encoder.blocks1.{block}.conv1",
        "encoder.blocks1.{block}.norm2": "encoder.blocks1.{block}.mlp.fc1",
        "encoder.blocks2.{block}.norm1": "encoder.blocks2.{block}.conv1",
        "encoder.blocks2.{block}.norm2": "encoder.blocks2.{block}.mlp.fc1",
        "encoder.blocks3.{block}.norm1": "encoder.blocks3.{block}.attn.qkv",
        "encoder.blocks3.{block}.norm2": "encoder.blocks3.{block}.mlp.fc1",
    },
)
FAMILIES = (CONVNEXTV2, VIT, CONVMAE)
SOURCES = tuple(dict.fromkeys(name for family in FAMILIES for name in family.formats))
"""Names of all formats that can be read."""

# A key that tells what else somebody may have at hand.
_OTHERS = {
    "layer1.0.conv1.weight": "a ResNet",
    "layers.0.blocks.0.attn.qkv.weight": "a Swin",
    "stages.0.0.gamma": "ConvNeXt V1",
}


def find_format(state_dict: Mapping[str, object], source: str = "auto") -> tuple[Family, Format]:
    """The family and format of weights.

    Args:
        state_dict: Weights under their own names.
        source: Name of the format, or `auto` to tell it from the keys.
    Raises:
        InputError: no format of that name, or keys of none or of several.
    """
    named = [
        (family, form)
        for family in FAMILIES
        for form in family.formats.values()
        if source in ("auto", form.name)
    ]
    if not named:
        raise InputError(f"source: expected auto, {' or '.join(SOURCES)}, got {source}. Choose one of them.")
    matching = [(family, form) for family, form in named if form.matches(state_dict)]
    if len(matching) == 1:
        return matching[0]
    if not matching and len(named) == 1:
        return named[0]  # the user says so; what does not fit is told key by key
    if matching:
        found = " and ".join(f"{form.name} ({family.name})" for family, form in matching)
        raise InputError(f"weights: expected keys of one format, got those of {found}. Add --source.")
    keys = [str(key) for key in state_dict]
    other = next((f", which looks like {name}" for key, name in _OTHERS.items() if key in state_dict), "")
    raise InputError(
        f"weights: expected keys of {' or '.join(family.name for family in FAMILIES)} "
        f"({', '.join(SOURCES)}), got {shorten(keys) or 'no keys'}{other}. Give a checkpoint of one of these."
    )


def detect_source(state_dict: Mapping[str, object]) -> str:
    """The name of these weights' format.

    Raises:
        InputError: the keys are of none or of several.
    """
    return find_format(state_dict)[1].name
