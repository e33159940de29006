"""Modules over the operations: parameters in the dense PyTorch layout, sparse or dense input.

A sparse module and a dense one share a state dict, so weights move between pretraining and fine-tuning
unchanged.
"""

import torch
from torch import nn

from sparse_ops import functional
from sparse_ops.functional import Scope
from sparse_ops.image import Image


class SubmConv2d(nn.Conv2d):
    """Submanifold convolution with the parameters of `nn.Conv2d`; see `sparse_ops.subm_conv2d`.

    Args:
        in_channels, out_channels: Channels.
        kernel_size: Side of the kernel, odd.
        groups: 1 or `in_channels`.
        bias: Whether there is one.
        backend: "auto" or a `Backend`'s name.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        groups: int = 1,
        bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias
        )
        self.backend = backend

    def forward(self, x: Image) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolve a SparseImage, a MaskedImage or a tensor [B, H, W, C]."""
        return functional.subm_conv2d(x, self.weight, self.bias, groups=self.groups, backend=self.backend)


class DownsampleConv2d(nn.Conv2d):
    """Convolution with kernel = stride and the parameters of `nn.Conv2d`; see
    `sparse_ops.downsample_conv2d`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, factor: int, *, bias: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__(in_channels, out_channels, factor, stride=factor, bias=bias)
        self.backend = backend

    def forward(self, x: Image) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Downsample a SparseImage, a MaskedImage or a tensor [B, H, W, C]."""
        return functional.downsample_conv2d(x, self.weight, self.bias, backend=self.backend)


class GlobalResponseNorm(nn.Module):
    """GRN with parameters named as timm names them; see `sparse_ops.global_response_norm`.

    Attributes:
        weight: gamma, [C], zero at the start, so that the layer begins as the identity.
        bias: beta, [C], zero at the start.
    """

    def __init__(
        self, channels: int, *, eps: float = 1e-6, scope: Scope = "image", backend: str = "auto"
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps
        self.scope: Scope = scope
        self.backend = backend

    def forward(self, x: Image) -> Image:
        """Normalise a SparseImage, a MaskedImage or a tensor [B, H, W, C]."""
        return functional.global_response_norm(
            x, self.weight, self.bias, eps=self.eps, scope=self.scope, backend=self.backend
        )
