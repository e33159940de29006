"""MinkowskiEngine 0.5: convolutions, regular and channelwise, by the coordinates (image, y, x) of the rows.

The layouts are tested against tensors that MinkowskiEngine 0.5.4 made. The calls follow its documentation and
have been run against a stand-in only: it has had no release since 2021 and builds with no current torch.
"""

import importlib
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from sparse_ops.dispatch import Call
from sparse_ops.foreign import centred, coordinates, in_our_order, missing, rows_at, unfit
from sparse_ops.sites import ActiveSites

HINT = "build it from github.com/NVIDIA/MinkowskiEngine"
DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float64)}


def reasons(call: Call) -> list[str]:
    """Why MinkowskiEngine cannot run the call."""
    if call.op not in ("subm_conv2d", "downsample_conv2d"):
        return ["MinkowskiEngine has none of this kind; use backend 'scatter'"]
    return missing("MinkowskiEngine", HINT) + unfit(call, DTYPES) + centred(call)


def to_minkowski(weight: Tensor, *, depthwise: bool = False) -> Tensor:
    """Kernel of MinkowskiEngine with its offsets in one axis, `y` fastest.

    Args:
        weight: [C_out, C_in, k, k], or depthwise [C, 1, k, k].
        depthwise: Which of the two.
    Returns:
        [k * k, C_in, C_out], [C_in, C_out] for k = 1, or depthwise [k * k, C]; offset (y, x) is `y + k * x`.
    """
    outputs, inputs, side, _ = weight.shape
    kernel = weight.permute(3, 2, 1, 0).reshape(side * side, inputs, outputs)
    return kernel.squeeze(1 if depthwise else 0) if depthwise or side == 1 else kernel


def from_minkowski(kernel: Tensor, *, depthwise: bool = False) -> Tensor:
    """The inverse of `to_minkowski`; `depthwise` tells [k * k, C] from the [C_in, C_out] of k = 1."""
    if kernel.ndim == 2:
        kernel = kernel.unsqueeze(1 if depthwise else 0)
    side = isqrt(kernel.shape[0])
    return kernel.reshape(side, side, *kernel.shape[1:]).permute(3, 2, 1, 0).contiguous()


def subm_conv2d(
    features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites, groups: int
) -> Tensor:
    """`MinkowskiConvolution`, or `MinkowskiChannelwiseConvolution` for groups = C."""
    out = _convolve(features, weight, sites, stride=1, depthwise=groups > 1)
    return out if bias is None else out + bias


def downsample_conv2d(features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites) -> Tensor:
    """`MinkowskiConvolution` with stride = kernel, whose coordinates stay in units of the finer sites."""
    out = _convolve(features, weight, sites, stride=weight.shape[-1], depthwise=False)
    return out if bias is None else out + bias


def _convolve(
    features: Tensor, weight: Tensor, sites: ActiveSites, *, stride: int, depthwise: bool
) -> Tensor:
    engine: Any = importlib.import_module("MinkowskiEngine")
    known = sites.table(
        "minkowski",
        lambda: engine.SparseTensor(features.new_zeros(sites.num_sites, 1), coordinates=coordinates(sites)),
    )
    x = engine.SparseTensor(
        features.index_select(0, rows_at(known.C, sites)),
        coordinate_map_key=known.coordinate_map_key,
        coordinate_manager=known.coordinate_manager,
    )
    size = {"kernel_size": weight.shape[-1], "stride": stride, "dimension": 2}
    if depthwise:
        layer = engine.MinkowskiChannelwiseConvolution(weight.shape[0], **size)
    else:
        layer = engine.MinkowskiConvolution(weight.shape[1], weight.shape[0], **size)
    out = functional_call(layer, {"kernel": to_minkowski(weight, depthwise=depthwise)}, (x,))
    places = torch.cat([out.C[:, :1], out.C[:, 1:] // stride], dim=1)
    return in_our_order(out.F, places, sites.downsample(stride))
