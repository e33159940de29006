"""What conversion needs to know of a network: its sizes, and how others build it."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fcmae.errors import InputError


class Network(Protocol):
    """A family's architecture: a frozen dataclass of sizes."""

    @property
    def backbone(self) -> str:
        """Name of a preset with the same sizes, or nearly so."""
        ...

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        ...

    @property
    def depths(self) -> tuple[int, ...] | None:
        """Blocks of each stage; None: those of `backbone`."""
        ...

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image to try the network with."""
        ...

    def our_shapes(self, *, num_classes: int, decoder: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Our name -> shape of the encoder, the head unless it has 0 classes, and what `decoder` holds."""
        ...

    def timm_shapes(self, *, num_classes: int) -> dict[str, torch.Size]:
        """Name -> shape of timm's model."""
        ...

    def create_timm(self, **options: Any) -> nn.Module:
        """timm's model with random weights."""
        ...

    def require_fits(self, target: str) -> None:
        """Raise InputError where the target's library can build no such network."""
        ...

    def call(self, target: str, out: str, *, num_classes: int) -> str:
        """How a reader makes the model that converted weights at `out` fit; 0 classes: they have no head."""
        ...


def weight_of(weights: Mapping[str, Tensor], key: str, *ndims: int) -> Tensor:
    """A weight by our name.

    Raises:
        InputError: it is missing, or has another number of dimensions.
    """
    if key not in weights:
        raise InputError(f"weights: expected every key of the network, got no {key}. Check the file.")
    if weights[key].ndim not in ndims:
        raise InputError(
            f"weights: expected {key} of {' or '.join(map(str, ndims))} dimensions, "
            f"got {list(weights[key].shape)}. Check the file."
        )
    return weights[key]


def shapes_of(parts: Mapping[str, nn.Module]) -> dict[str, torch.Size]:
    """Name -> shape of the state dicts of some modules, each under its prefix."""
    return {
        f"{part}.{name}".removeprefix("."): tensor.shape
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
