"""Our pretraining checkpoint: the middle in which all formats meet, so every name stands for itself."""

import torch
from torch import Tensor

from fcmae.convert.formats.format import Format

NAMES = {
    "encoder.{path}": "encoder.{path}",
    "decoder.{path}": "decoder.{path}",
}


def layout(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The tensor as it is: nothing is stored in another layout."""
    return tensor


FORMAT = Format(name="fcmae", marker="encoder.stem.0.weight", names=NAMES, layout=layout)
