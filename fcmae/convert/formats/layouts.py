"""How formats store one weight: functions between another engine's layout and the dense PyTorch one.

A dense kernel is [C_out, C_in // groups, k, k]; a linear layer [C_out, C_in]; all else [C].
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from fcmae.errors import InputError
from sparse_ops.backends.minkowski_adapter import from_minkowski, to_minkowski
from sparse_ops.backends.spconv_adapter import from_spconv, to_spconv
from sparse_ops.backends.warpconvnet_adapter import from_warpconvnet, to_warpconvnet


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One weight's way in and out; they are inverses, bit for bit."""

    to_ours: Callable[[Tensor], Tensor]
    from_ours: Callable[[Tensor], Tensor]


def _require(tensor: Tensor, *ndims: int) -> Tensor:
    if tensor.ndim not in ndims:
        raise InputError(
            f"expected {' or '.join(map(str, ndims))} dimensions, got {tensor.ndim}. Check the file."
        )
    return tensor


def _offsets(kernel: Tensor, *, depthwise: bool) -> Tensor:
    """A kernel with its offsets in the first axis, which must make a square."""
    # MinkowskiEngine drops the offsets' axis of a regular kernel where there is but one.
    _require(kernel, *((2,) if depthwise else (2, 3)))
    offsets = kernel.shape[0] if depthwise or kernel.ndim == 3 else 1
    if isqrt(offsets) ** 2 != offsets:
        raise InputError(f"expected the offsets of a square kernel, got {offsets}. Check the file.")
    return kernel


def _full_to_depthwise(kernel: Tensor) -> Tensor:
    """[C, k, k, C] to [C, 1, k, k]: the diagonal, if there is nothing beside it."""
    channels = _require(kernel, 4).shape[0]
    if kernel.shape[3] != channels:
        raise InputError(
            f"expected spconv's layout [C, k, k, C], got {kernel.shape[3]} inputs and {channels} outputs. "
            "Name the format with --source."
        )
    diagonal = kernel.diagonal(dim1=0, dim2=3)  # [k, k, C]
    if kernel.count_nonzero() != diagonal.count_nonzero():
        raise InputError(
            "expected a depthwise kernel, zero where input and output channel differ, got a regular one. "
            "No network here has regular kernels in its blocks."
        )
    return diagonal.permute(2, 0, 1).unsqueeze(1)


def _depthwise_to_full(kernel: Tensor) -> Tensor:
    """[C, 1, k, k] to [C, k, k, C], zero where input and output channel differ."""
    return torch.diag_embed(kernel.squeeze(1).permute(1, 2, 0), dim1=0, dim2=3)


ROW = Layout(to_ours=lambda row: row.flatten(), from_ours=lambda vector: vector.view(1, -1))
"""[1, C]: MinkowskiEngine's biases and the original's sparse GRN."""

GRN_MAP = Layout(to_ours=lambda map_: map_.flatten(), from_ours=lambda vector: vector.view(1, 1, 1, -1))
"""[1, 1, 1, C]: the original's dense GRN, channels last."""

CHANNEL_MAP = Layout(to_ours=lambda map_: map_.flatten(), from_ours=lambda vector: vector.view(1, -1, 1, 1))
"""[1, C, 1, 1]: a mask token for maps with channels first."""

POINTWISE = Layout(
    to_ours=lambda kernel: kernel.flatten(1), from_ours=lambda matrix: matrix.unsqueeze(-1).unsqueeze(-1)
)
"""[C_out, C_in, 1, 1]: a linear layer as a 1x1 convolution."""

MINKOWSKI = Layout(
    to_ours=lambda kernel: from_minkowski(_offsets(kernel, depthwise=False)), from_ours=to_minkowski
)
"""[K, C_in, C_out] with the first spatial axis fastest; [C_in, C_out] where K is 1."""

MINKOWSKI_DEPTHWISE = Layout(
    to_ours=lambda kernel: from_minkowski(_offsets(kernel, depthwise=True), depthwise=True),
    from_ours=lambda kernel: to_minkowski(kernel, depthwise=True),
)
"""[K, C] with the first spatial axis fastest."""

WARPCONVNET = Layout(
    to_ours=lambda kernel: from_warpconvnet(_offsets(_require(kernel, 3), depthwise=False)),
    from_ours=to_warpconvnet,
)
"""[K, C_in, C_out] with the last spatial axis fastest."""

WARPCONVNET_DEPTHWISE = Layout(
    to_ours=lambda kernel: from_warpconvnet(_offsets(kernel, depthwise=True)),
    from_ours=lambda kernel: to_warpconvnet(kernel, depthwise=True),
)
"""[K, C] with the last spatial axis fastest."""

SPCONV = Layout(to_ours=lambda kernel: from_spconv(_require(kernel, 4)), from_ours=to_spconv)
"""[C_out, k, k, C_in], called KRSC."""

SPCONV_DEPTHWISE = Layout(to_ours=_full_to_depthwise, from_ours=_depthwise_to_full)
"""[C, k, k, C]: spconv has no depthwise convolution, so a regular one whose other weights are zero."""
