"""Weights into a module: one of our encoders, a method around one, or a timm classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fcmae.convert.families import find_format
from fcmae.convert.report import Report
from fcmae.convert.source import open_source
from fcmae.convert.transfer import transfer


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
    opened = open_source(weights, source=source)
    expected = module.state_dict()
    placed, report = transfer(
        opened.weights,
        source=opened.format,
        target=find_format(expected)[1],
        target_shapes={name: tensor.shape for name, tensor in expected.items()},
    )
    module.load_state_dict({**expected, **placed})
    return report
