"""The operations that `fcmae bench ops` times, and one engine's run of one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparse_ops import (
    ActiveSites,
    Image,
    MaskedImage,
    SparseImage,
    downsample_conv2d,
    features_of,
    global_response_norm,
    grn_mlp,
    subm_conv2d,
)

MASKED_DENSE = "masked_dense"
"""Not a backend: the op on the dense map with a mask, through PyTorch's dense kernels."""


@dataclass(frozen=True)
class Operation:
    """An operation to be timed.

    Attributes:
        name: As it is printed.
        width: Channels of its input.
        shapes: Of its parameters.
        run: Called as `run(image, backend, *parameters)`.
    """

    name: str
    width: int
    shapes: tuple[tuple[int, ...], ...]
    run: Callable[..., Image]


def operations(channels: int) -> list[Operation]:
    """The operations of a ConvNeXt V2 stage of that width, and the regular 3x3 convolution."""
    c, wide = channels, 4 * channels

    def depthwise(x: Image, backend: str, weight: Tensor, bias: Tensor) -> Image:
        return subm_conv2d(x, weight, bias, groups=c, backend=backend)

    def regular(x: Image, backend: str, weight: Tensor, bias: Tensor) -> Image:
        return subm_conv2d(x, weight, bias, backend=backend)

    def downsample(x: Image, backend: str, weight: Tensor, bias: Tensor) -> Image:
        return downsample_conv2d(x, weight, bias, backend=backend)

    def grn(x: Image, backend: str, gamma: Tensor, beta: Tensor) -> Image:
        return global_response_norm(x, gamma, beta, backend=backend)

    def mlp(x: Image, backend: str, *p: Tensor) -> Image:
        return grn_mlp(x, (p[0], p[1]), (p[2], p[3]), (p[4], p[5]), backend=backend)

    return [
        Operation("depthwise 7x7", c, ((c, 1, 7, 7), (c,)), depthwise),
        Operation("regular 3x3", c, ((c, c, 3, 3), (c,)), regular),
        Operation("downsample 2x2", c, ((2 * c, c, 2, 2), (2 * c,)), downsample),
        Operation("grn", wide, ((wide,), (wide,)), grn),
        Operation("grn_mlp", c, ((wide, c), (wide,), (wide,), (wide,), (c, wide), (c,)), mlp),
    ]


@dataclass
class Arm:
    """One engine's run of an operation, with leaves of its own.

    Attributes:
        leaves: The input, [N, C] rows or the dense map [B, H, W, C], and the parameters.
        steps: Gradient of the output, of the output's shape.
        reasons: Why a pass is not timed.
        seconds: Of each timed run of a pass.
    """

    operation: Operation
    engine: str
    sites: ActiveSites
    leaves: list[Tensor]
    steps: Tensor
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        operation: Operation,
        engine: str,
        x: SparseImage,
        parameters: Sequence[Tensor],
        steps: SparseImage,
        dtype: torch.dtype = torch.float32,
    ) -> "Arm":
        """An arm of that dtype; `steps` is the gradient of the output's rows."""
        x, steps = x.map(lambda rows: rows.to(dtype)), steps.map(lambda rows: rows.to(dtype))
        dense = engine == MASKED_DENSE
        inputs = (x.densify() if dense else x.features, *parameters)
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in inputs]
        return cls(operation, engine, x.sites, leaves, steps.densify() if dense else steps.features)

    def run(self) -> Image:
        """The operation's result."""
        if self.engine == MASKED_DENSE:
            return self.operation.run(MaskedImage(self.leaves[0], self.sites), "auto", *self.leaves[1:])
        return self.operation.run(SparseImage(self.leaves[0], self.sites), self.engine, *self.leaves[1:])

    def forward(self) -> list[Image]:
        """The output, without a graph."""
        with torch.no_grad():
            return [self.run()]

    def forward_backward(self) -> list[Image]:
        """The output, and the gradients of the leaves."""
        out = self.run()
        features = features_of(out)
        gradient, *others = torch.autograd.grad(features, self.leaves, self.steps)
        dense = self.engine == MASKED_DENSE
        return [out, MaskedImage(gradient, self.sites) if dense else gradient, *others]
