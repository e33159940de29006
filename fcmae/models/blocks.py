"""Blocks that run on rows of visible sites and on dense maps alike, from one set of parameters."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.config import Gating
from fcmae.errors import InputError
from fcmae.models.gates import OWN_GATES, create_gate
from sparse_ops import (
    DownsampleConv2d,
    GlobalResponseNorm,
    Image,
    Scope,
    SparseImage,
    SubmConv2d,
    features_of,
    grn_mlp,
    linear,
    with_features,
)

LAYER_SCALE_INIT = 1e-6
"""ConvNeXt V1's factors on its branches at the start."""


def pointwise(module: nn.Module, x: Image) -> Image:
    """Apply a module that acts on the channels of each site."""
    return with_features(x, module(features_of(x)))


class DropPath(nn.Module):
    """Stochastic depth: drop the residual branch of whole images, scale the others up.

    Args:
        rate: Probability of dropping, in [0, 1).
    Paper: Huang et al. 2016, Deep Networks with Stochastic Depth.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"drop_path: expected a rate in [0, 1), got {rate:g}.")
        self.rate = rate

    def forward(self, x: Image) -> Tensor:
        """The features of `x`, some images of them zero."""
        features = features_of(x)
        if not self.training or self.rate == 0.0:
            return features
        images = x.sites.batch_size if isinstance(x, SparseImage) else features.shape[0]
        keep = torch.rand(images, device=features.device) >= self.rate
        scale = keep.to(features.dtype) / (1 - self.rate)
        if isinstance(x, SparseImage):
            return features * scale[x.sites.image_of_row].unsqueeze(1)
        return features * scale.view(-1, 1, 1, 1)

    def extra_repr(self) -> str:
        """The rate, for print(model)."""
        return f"rate={self.rate:g}"


class RowLinear(nn.Linear):
    """A linear layer by the fastest GEMM, see `sparse_ops.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., C_in] to [..., C_out]."""
        return linear(input, self.weight, self.bias)


class GatedMlp(nn.Module):
    """Linear, GELU, a gate, linear, with timm's parameter names.

    Args:
        channels: Width of input and output, C.
        mlp_ratio: Width of the hidden features as a multiple of C.
        gating: What gates the hidden features: "grn", one of OWN_GATES under its own name, or for all others
            nothing.
        grn_scope: Sites of GRN's statistics, "image" or "batch".
        backend: Engine of the sparse operations.
    """

    grn: GlobalResponseNorm

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: int = 4,
        gating: Gating = "grn",
        grn_scope: Scope = "image",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        hidden = mlp_ratio * channels
        self.fc1 = RowLinear(channels, hidden)
        if gating == "grn":
            self.grn = GlobalResponseNorm(hidden, scope=grn_scope, backend=backend)
        elif gating in OWN_GATES:
            self.add_module(gating, create_gate(gating, hidden, backend=backend))
        self.fc2 = RowLinear(hidden, channels)
        self.gating, self.backend = gating, backend

    def forward(self, x: Image) -> Image:
        """C channels to C channels, any representation."""
        if self.gating != "grn":
            return pointwise(self.fc2, self.hidden(x))
        return grn_mlp(
            x,
            (self.fc1.weight, self.fc1.bias),
            (self.grn.weight, self.grn.bias),
            (self.fc2.weight, self.fc2.bias),
            eps=self.grn.eps,
            scope=self.grn.scope,
            backend=self.backend,
        )

    def hidden(self, x: Image) -> Image:
        """What the second layer reads, mlp_ratio * C channels, behind the gate."""
        hidden = with_features(x, F.gelu(self.fc1(features_of(x))))
        gated = self.gating == "grn" or self.gating in OWN_GATES
        return self.get_submodule(self.gating)(hidden) if gated else hidden


class ConvNeXtV2Block(nn.Module):
    """Depthwise convolution, LayerNorm and the gated MLP, around a residual.

    Args:
        channels: Width, C.
        kernel_size: Side of the depthwise kernel (the paper: 7).
        mlp_ratio: Width of the hidden features as a multiple of C (the paper: 4).
        drop_path: Probability of dropping the branch.
        gating: As for `GatedMlp`; "layer_scale" multiplies the branch by a factor a channel instead.
        grn_scope: Sites of GRN's statistics, "image" or "batch".
        backend: Engine of the sparse operations.
    Attributes:
        gamma: ConvNeXt V1's layer scale, [C], 1e-6 at the start; None unless `gating` is "layer_scale".
    Paper: Woo et al. 2023, ConvNeXt V2, figure 5; layer scale: Liu et al. 2022, A ConvNet for the 2020s.
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        gating: Gating = "grn",
        grn_scope: Scope = "image",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        scale = nn.Parameter(torch.full((channels,), LAYER_SCALE_INIT)) if gating == "layer_scale" else None
        self.register_parameter("gamma", scale)
        self.conv_dw = SubmConv2d(channels, channels, kernel_size, groups=channels, backend=backend)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = GatedMlp(
            channels, mlp_ratio=mlp_ratio, gating=gating, grn_scope=grn_scope, backend=backend
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Image) -> Image:
        """C channels to C channels at the same sites."""
        branch = self.mlp(pointwise(self.norm, self.conv_dw(x)))
        if self.gamma is not None:
            branch = with_features(branch, features_of(branch) * self.gamma)
        return with_features(x, features_of(x) + self.drop_path(branch))


class Downsample(nn.Sequential):
    """LayerNorm and a 2x2 convolution of stride 2, named as in timm."""

    def __init__(self, in_channels: int, out_channels: int, *, backend: str = "auto") -> None:
        super().__init__(
            nn.LayerNorm(in_channels, eps=1e-6),
            DownsampleConv2d(in_channels, out_channels, 2, backend=backend),
        )

    @property
    def norm(self) -> nn.LayerNorm:
        """The LayerNorm."""
        return cast(nn.LayerNorm, self[0])

    @property
    def conv(self) -> DownsampleConv2d:
        """The convolution behind it."""
        return cast(DownsampleConv2d, self[1])

    def forward(self, x: Image) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Half the sites in each direction."""
        return self.conv(pointwise(self.norm, x))
