"""Weights as a user has them: a run folder, a checkpoint, a converted file or a state dict in memory."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcmae.convert.families import Family, find_format
from fcmae.convert.files import read_checkpoint, read_newest_checkpoint
from fcmae.convert.formats import Format
from fcmae.convert.networks.network import Network
from fcmae.convert.report import shorten
from fcmae.errors import InputError

# What DistributedDataParallel and torch.compile put before every name; the first may hold the second.
_WRAPPERS = ("module.", "_orig_mod.")
# Where the original projects, timm and our fine-tuning keep a moving average beside the weights.
_AVERAGES = ("model_ema", "state_dict_ema", "ema")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A state dict, its format, and what came with it."""

    weights: dict[str, Tensor]
    family: Family
    format: Format
    path: Path | None = None
    """The file that was read; None for a state dict in memory."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The config of a checkpoint of ours, of pretraining or fine-tuning; empty for all others."""
    is_pretraining: bool = False
    """Whether it is a pretraining checkpoint of ours."""
    average: str | None = None
    """Name under which the file holds a moving average beside these weights."""
    refused: list[str] = field(default_factory=list)
    """One line for each damaged newer checkpoint of the run."""

    def architecture(self) -> Network:
        """What the checkpoint's config declares, or what the shapes show where there is no config."""
        if self.is_pretraining:
            return self.family.from_config(self.config, self.ours())
        # A fine-tuning config names no depths or dims: its classifier's shapes say more.
        return self.family.from_shapes(self.ours(), self.config.get("data", {}).get("image_size"))

    @property
    def drop_path(self) -> float:
        """Stochastic depth that the network was trained with, where the file says so."""
        return self.config.get("model", {}).get("drop_path", 0.0)

    def ours(self) -> dict[str, Tensor]:
        """The weights under our names and in our layouts, those that have one; nothing is copied if possible.

        Raises:
            InputError: a tensor cannot have its format's layout.
        """
        names = {key: self.format.to_ours(key) for key in self.weights}
        return {
            name: self.format.import_tensor(name, self.weights[key])
            for key, name in names.items()
            if name is not None
        }

    def without(self, *parts: str) -> dict[str, Tensor]:
        """The weights as they are, without those whose names in ours begin with one of `parts`."""
        return {
            key: tensor
            for key, tensor in self.weights.items()
            if not (self.format.to_ours(key) or "").startswith(parts)
        }


def open_source(weights: str | Path | Mapping[str, Any], *, source: str = "auto") -> Source:
    """Read weights and tell their format.

    Args:
        weights: A checkpoint or weight file; a run folder, whose newest readable checkpoint is taken; or what
            such a file holds.
        source: The format, or `auto` to tell it from the keys.
    Raises:
        InputError: nothing readable there, no state dict in it, or a format that is not known.
    """
    path: Path | None = None
    refused: list[str] = []
    if isinstance(weights, Mapping):
        content: Mapping[str, Any] = weights
    elif os.path.isdir(weights):  # False, not an error, for a path that no system call takes
        newest = read_newest_checkpoint(weights, mmap=True)
        if newest is None:
            raise InputError(
                f"checkpoint: expected step_*.pt in {weights} or its checkpoints, got none. "
                "Name another run, or a weight file."
            )
        path, content, refused = newest
    else:
        path = Path(weights)
        content = read_checkpoint(path, mmap=True)
    state_dict = _state_dict(content)
    family, form = find_format(state_dict, source)
    _require_plain({key: tensor for key, tensor in state_dict.items() if form.why_dropped(key) is None})
    is_ours = content.get("format") == "fcmae-1"
    return Source(
        weights=form.join(state_dict),
        family=family,
        format=form,
        path=path,
        config=content.get("config", {}) if is_ours else {},
        is_pretraining=is_ours and content.get("kind") == "pretrain",
        average=next((key for key in _AVERAGES if isinstance(content.get(key), Mapping)), None),
        refused=refused,
    )


def _state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = content
    # Ours and the original projects'; timm's and most others'; MSN's, of whose two networks this one is used.
    for key in ("model", "state_dict", "target_encoder"):
        if isinstance(content.get(key), Mapping):
            inner = content[key]
            break
    for prefix in _WRAPPERS:
        if inner and all(str(key).startswith(prefix) for key in inner):
            inner = {str(key).removeprefix(prefix): value for key, value in inner.items()}
    foreign = [
        f"{key} ({type(value).__name__})" for key, value in inner.items() if not isinstance(value, Tensor)
    ]
    if foreign:
        raise InputError(
            f"checkpoint: expected a state dict, bare or as `model` or `state_dict`, got {shorten(foreign)}. "
            "Save the model's state dict."
        )
    return dict(inner)


def _require_plain(weights: Mapping[str, Tensor]) -> None:
    foreign = [
        f"{key} ({'meta' if tensor.is_meta else tensor.layout}, {tensor.dtype})".replace("torch.", "")
        for key, tensor in weights.items()
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.dtype not in _DTYPES
    ]
    if foreign:
        raise InputError(
            "weights: expected dense tensors in float32, float64, float16 or bfloat16, got "
            f"{shorten(foreign)}. Save the weights in one of these."
        )
