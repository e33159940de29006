"""WarpConvNet: convolutions, regular and depthwise, by coordinates (y, x) and the offsets of the images.

The layouts are tested by the definition. The calls follow its documentation of version 1.5 and have been run
against a stand-in only: it needs a CUDA device.
"""

import importlib
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from sparse_ops.dispatch import Call
from sparse_ops.foreign import centred, coordinates, in_our_order, missing, unfit
from sparse_ops.sites import ActiveSites

HINT = "install it from github.com/NVlabs/WarpConvNet"
DTYPES = {"cuda": (torch.float32, torch.float16, torch.bfloat16)}


def reasons(call: Call) -> list[str]:
    """Why WarpConvNet cannot run the call."""
    if call.op not in ("subm_conv2d", "downsample_conv2d"):
        return ["WarpConvNet has none of this kind; use backend 'scatter'"]
    return missing("warpconvnet", HINT) + unfit(call, DTYPES) + centred(call)


def to_warpconvnet(weight: Tensor, *, depthwise: bool = False) -> Tensor:
    """Kernel of WarpConvNet with its offsets in one axis, row-major.

    Args:
        weight: [C_out, C_in, k, k], or depthwise [C, 1, k, k].
        depthwise: Which of the two.
    Returns:
        [k * k, C_in, C_out] or depthwise [k * k, C]; offset (y, x) is `k * y + x`.
    """
    outputs, inputs, side, _ = weight.shape
    kernel = weight.permute(2, 3, 1, 0).reshape(side * side, inputs, outputs)
    return kernel.squeeze(1) if depthwise else kernel


def from_warpconvnet(kernel: Tensor) -> Tensor:
    """The inverse of `to_warpconvnet`: [k * k, C_in, C_out] or depthwise [k * k, C]."""
    if kernel.ndim == 2:
        kernel = kernel.unsqueeze(1)
    side = isqrt(kernel.shape[0])
    return kernel.reshape(side, side, *kernel.shape[1:]).permute(3, 2, 0, 1).contiguous()


def subm_conv2d(
    features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites, groups: int
) -> Tensor:
    """`SparseConv2d` with stride 1, or `SparseDepthwiseConv2d` for groups = C."""
    out = _convolve(features, weight, sites, stride=1, depthwise=groups > 1)
    return out if bias is None else out + bias


def downsample_conv2d(features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites) -> Tensor:
    """`SparseConv2d` with stride = kernel; its coordinates are those of the coarser sites."""
    out = _convolve(features, weight, sites, stride=weight.shape[-1], depthwise=False)
    return out if bias is None else out + bias


def _convolve(
    features: Tensor, weight: Tensor, sites: ActiveSites, *, stride: int, depthwise: bool
) -> Tensor:
    x = _module("geometry.types.voxels").Voxels(
        coordinates(sites)[:, 1:].contiguous(),
        features,
        offsets=sites.row_offsets.int().cpu(),
        # Where its layers keep the neighbours that they have looked up.
        _cache=sites.table("warpconvnet", _module("geometry.coords.search.cache").IntSearchCache),
    )
    with torch.device("meta"):  # the layer's own weight is never used
        if depthwise:
            make = _module("nn.modules.sparse_conv_depth").SparseDepthwiseConv2d
            layer = make(weight.shape[0], weight.shape[-1], bias=False)
        else:
            make = _module("nn.modules.sparse_conv").SparseConv2d
            layer = make(weight.shape[1], weight.shape[0], weight.shape[-1], stride=stride, bias=False)
    out = functional_call(layer, {"weight": to_warpconvnet(weight, depthwise=depthwise)}, (x,))
    return in_our_order(out.feature_tensor, out.batch_indexed_coordinates, sites.downsample(stride))


def _module(name: str) -> Any:
    return importlib.import_module(f"warpconvnet.{name}")
