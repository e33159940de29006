"""Networks whose features can be looked at: checkpoints, and models of timm."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import nn

from fcmae.convert import Architecture, open_source
from fcmae.errors import InputError
from fcmae.evaluation.encoders import load_encoder
from fcmae.evaluation.settings import TIMM
from fcmae.models import ViTEncoder


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A network that hooks can be put into."""

    name: str
    model: nn.Module
    prefix_tokens: int
    """Tokens before those of the patches."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """As of a LoadedEncoder."""


def load_observed(path: str, *, in_chans: int, num_heads: int | None = None) -> Observed:
    """A checkpoint's network, or `timm:NAME` with timm's pretrained weights, or `timm:NAME=FILE`.

    Of ConvNeXt V2 it is timm's dense model with the checkpoint's weights, since our blocks run the MLP as one
    operation, which no hook sees into; ViT and ConvMAE are our encoders.

    Args:
        path: A run folder, a file of any format that `fcmae convert` reads, or a model of timm.
        in_chans: Channels of the images.
        num_heads: As for `load_encoder`.
    Raises:
        InputError: it cannot be read, has other channels, or timm knows no such model or weights.
    """
    if path.startswith(TIMM):
        model = _timm(path, in_chans=in_chans)
        return Observed(name=path, model=model, prefix_tokens=getattr(model, "num_prefix_tokens", 0))
    loaded = load_encoder(path, in_chans=in_chans, num_heads=num_heads)
    if not isinstance(loaded.network, Architecture):
        prefix_tokens = int(isinstance(loaded.encoder, ViTEncoder))
        return Observed(name=path, model=loaded.encoder, prefix_tokens=prefix_tokens, data=loaded.data)
    source = open_source(path)
    assert source.family.dense_model is not None  # timm has ConvNeXt V2
    model = source.family.dense_model(source.weights, source.format, loaded.network, 0.0)
    return Observed(name=path, model=model.float().eval(), prefix_tokens=0, data=loaded.data)


def _timm(path: str, *, in_chans: int) -> nn.Module:
    name, _, file = path.removeprefix(TIMM).partition("=")
    if name.partition(".")[0] not in timm.list_models():
        raise InputError(f"checkpoint: expected {TIMM}NAME of a model that timm has, got {path}.")
    if file and not Path(file).is_file():
        raise InputError(f"checkpoint: expected a file behind {TIMM}{name}=, got nothing at {file}.")
    try:
        return timm.create_model(name, pretrained=not file, checkpoint_path=file, in_chans=in_chans).eval()
    except Exception as error:  # a missing network, file or key: each library on the way has its own
        reason = " ".join(str(error).split())
        raise InputError(
            f"checkpoint: expected weights of {path} that timm can load, got: {reason}"
        ) from error
