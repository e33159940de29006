"""Which engine runs a call: the names, the reasons why one cannot, and the order that `auto` tries."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from sparse_ops.checks import describe

logger = logging.getLogger("sparse_ops")


class Backend(StrEnum):
    """Engines of the sparse operations. A named one runs the call or raises; only `auto` chooses."""

    AUTO = "auto"
    REFERENCE = "reference"
    """Masked dense PyTorch: the definition of every op, differentiable any number of times."""
    SCATTER = "scatter"
    """Tiles and grids through PyTorch's dense kernels; the CPU default, correct on every device."""
    TRITON = "triton"
    """Kernels over the rows; the GPU default."""
    SPCONV = "spconv"
    """spconv's regular convolutions, where it is installed; never chosen by `auto`."""
    MINKOWSKI = "minkowski"
    """MinkowskiEngine's convolutions, where it is installed; never chosen by `auto`."""
    WARPCONVNET = "warpconvnet"
    """WarpConvNet's convolutions, where it is installed; never chosen by `auto`."""


class BackendUnavailableError(RuntimeError):
    """No engine, or not the named one, can run a call; the message holds each engine's reasons."""


@dataclass(frozen=True)
class Call:
    """What an engine needs to know to say whether it can run a call.

    Attributes:
        op: Name of the public function.
        features: The rows, [N, C].
        weight: The kernel, for a convolution.
        groups: 1 or the number of channels, for a convolution.
        backend: What the caller asked for, "auto" or a `Backend`'s name.
    """

    op: str
    features: Tensor
    weight: Tensor | None = None
    groups: int = 1
    backend: str = Backend.AUTO

    def describe(self) -> str:
        """Shapes and dtypes in one line."""
        text = f"{self.op}(features {describe(self.features)}"
        if self.weight is not None:
            text += f", weight {describe(self.weight)}, groups={self.groups}"
        return text + ")"


def select(call: Call, engines: Mapping[Backend, ModuleType]) -> ModuleType:
    """The engine that runs `call`; "auto" takes the first of `engines` that can.

    Raises:
        ValueError: `call.backend` is not a backend's name.
        BackendUnavailableError: no backend, or the named one, can run this call.
    """
    backend = call.backend
    if backend != Backend.AUTO and backend not in engines:
        names = ", ".join([Backend.AUTO, *engines])
        raise ValueError(f"{call.op}: expected backend one of {names}, got {backend!r}.")
    candidates = engines if backend == Backend.AUTO else (Backend(backend),)
    refusals = []
    for candidate in candidates:
        reasons = engines[candidate].reasons(call)
        if not reasons:
            if backend == Backend.AUTO and not torch.compiler.is_compiling():
                _announce(call.op, candidate, call.features.device.type)
            return engines[candidate]
        refusals.append(f"  {candidate}: {'; '.join(reasons)}")
    raise BackendUnavailableError("\n".join([f"{call.describe()}: no backend can run this call.", *refusals]))


@cache
def _announce(op: str, backend: Backend, device: str) -> None:
    """Say once which engine `auto` chose."""
    logger.info("%s on %s runs on backend %r", op, device, backend.value)
