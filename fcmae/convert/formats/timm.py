"""timm's `convnextv2_*`, with or without its head; our encoder alone has the same names."""

import torch
from torch import Tensor

from fcmae.convert.formats.format import Format

NAMES = {
    "stem.0.{param}": "encoder.stem.0.{param}",
    "stem.1.{param}": "encoder.stem.1.{param}",
    "stages.{stage}.downsample.0.{param}": "encoder.stages.{stage}.downsample.0.{param}",
    "stages.{stage}.downsample.1.{param}": "encoder.stages.{stage}.downsample.1.{param}",
    "stages.{stage}.blocks.{block}.conv_dw.{param}": "encoder.stages.{stage}.blocks.{block}.conv_dw.{param}",
    "stages.{stage}.blocks.{block}.norm.{param}": "encoder.stages.{stage}.blocks.{block}.norm.{param}",
    "stages.{stage}.blocks.{block}.mlp.fc1.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.fc1.{param}",
    "stages.{stage}.blocks.{block}.mlp.grn.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}",
    "stages.{stage}.blocks.{block}.mlp.fc2.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.fc2.{param}",
    "head.norm.{param}": "head.norm.{param}",
    "head.fc.{param}": "head.fc.{param}",
}


def layout(tensor: Tensor, shape: torch.Size) -> Tensor:
    """[O, I] <-> [O, I, 1, 1]: timm's atto to nano have 1x1 convolutions, all others linear layers."""
    short, long = sorted((tuple(tensor.shape), tuple(shape)), key=len)
    return tensor.reshape(shape) if len(short) == 2 and long == (*short, 1, 1) else tensor


FORMAT = Format(name="timm", marker="stem.0.weight", names=NAMES, layout=layout)
