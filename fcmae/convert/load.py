"""Weights into a module: one of our encoders, a method around one, or a timm classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcmae.convert.families import find_format
from fcmae.convert.formats import Format
from fcmae.convert.report import Report
from fcmae.convert.source import Source, open_source
from fcmae.convert.transfer import transfer
from fcmae.errors import InputError
from fcmae.models import Encoder


def load_weights(
    module: nn.Module, weights: str | Path | Mapping[str, Any], *, source: str = "auto"
) -> Report:
    """Load pretrained weights into `module`, all of them or none.

    Every key must find its place. Two parts may be absent on one side, and the report says so: a classifier's
    head (also when its number of classes differs), and a method's decoder.

    Args:
        module: An encoder of create_backbone, a method of create_method, or another library's model of the
            same network: timm's, transformers', ...
        weights: A checkpoint or weight file, a run folder (its newest readable checkpoint), or a state dict.
        source: The format of `weights`, or `auto` to tell it from the keys.
    Returns:
        What became of every key.
    Raises:
        InputError: the file cannot be read, a key is unexplained or missing, a shape differs, or a
            value is not finite.
    """
    module = getattr(module, "_orig_mod", module)  # torch.compile wraps it, and its names
    opened = open_source(weights, source=source)
    expected = module.state_dict()
    target = find_format(expected)[1]
    if target.name == "fcmae_msn":
        raise InputError(
            "module: expected one encoder, got MSN, which has two. Load the weights into an encoder, and "
            "make MSN from that."
        )
    placed, report = transfer(
        opened.weights,
        source=opened.format,
        target=target,
        target_shapes=_shapes(module, target.join(expected), target, opened),
    )
    module.load_state_dict({**expected, **target.split(placed)})
    return report


def _shapes(
    module: nn.Module, expected: Mapping[str, Tensor], target: Format, source: Source
) -> dict[str, torch.Size]:
    """Shapes that the module takes: its own, and of position embeddings any that ours fits itself."""
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    if any(isinstance(part, Encoder) for part in (module, *module.children())):
        given = source.ours()
        for key in shapes:
            name = target.to_ours(key)
            if name in given and name.endswith("pos_embed"):
                shapes[key] = given[name].shape
    return shapes
