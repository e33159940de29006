"""Submanifold convolution on a GPU: kernels for the depthwise one, gathered rows and a GEMM for the regular.

The depthwise data gradient is the forward with the flipped kernel. Triton is imported inside the ops.
"""

import torch
from torch import Tensor

from sparse_ops.backends.triton_gpu.gather import gather_conv
from sparse_ops.checks import require_no_tangents
from sparse_ops.sites import ActiveSites

LARGEST_CELL = 4
"""With 4 x 4 sums of two channels, registers have room for the taps in use."""


def subm_conv2d(
    features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites, groups: int
) -> Tensor:
    """See `sparse_ops.functional.subm_conv2d`; arguments are checked there."""
    require_no_tangents("subm_conv2d", features, weight, bias)
    if groups == 1:
        return gather_conv(features, weight, bias, sites.site_of_row, sites.row_of_site)
    # The largest power of two that divides the tile, up to LARGEST_CELL.
    side = min(LARGEST_CELL, sites.tile & -sites.tile)
    return _depthwise(features, weight, bias, sites.site_of_row, sites.row_of_site, side)


@torch.library.custom_op("sparse_ops::triton_depthwise", mutates_args=())
def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, site_of_row: Tensor, row_of_site: Tensor, side: int
) -> Tensor:
    from sparse_ops.backends.triton_gpu import conv_launch

    taps = conv_launch.taps_and_bias(weight, bias, flipped=False)
    return conv_launch.forward_rows(
        x.contiguous(), taps, site_of_row, row_of_site, kernel=weight.shape[-1], side=side
    )


@_depthwise.register_fake
def _(x, weight, bias, site_of_row, row_of_site, side) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("sparse_ops::triton_depthwise_backward", mutates_args=())
def _depthwise_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    site_of_row: Tensor,
    row_of_site: Tensor,
    side: int,
    need_x: bool,
    need_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from sparse_ops.backends.triton_gpu import conv_launch

    kernel = weight.shape[-1]
    grad_x, grad_weight, grad_bias = x.new_empty(0), weight.new_empty(0), weight.new_empty(0)
    grad = grad.contiguous()
    if need_x:
        taps = conv_launch.taps_and_bias(weight, None, flipped=True)
        grad_x = conv_launch.forward_rows(grad, taps, site_of_row, row_of_site, kernel=kernel, side=side)
    if need_parameters:
        grad_weight, grad_bias = conv_launch.weight_gradient(
            x.contiguous(), grad, site_of_row, row_of_site, kernel=kernel, side=side
        )
        grad_weight, grad_bias = grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
    return grad_x, grad_weight.contiguous(), grad_bias.clone()


@_depthwise_backward.register_fake
def _(grad, x, weight, site_of_row, row_of_site, side, need_x, need_parameters):
    grad_x = x.new_empty(x.shape) if need_x else x.new_empty(0)
    shapes = (weight.shape, weight.shape[:1]) if need_parameters else (0, 0)
    return grad_x, *(weight.new_empty(shape) for shape in shapes)


def _setup(ctx, inputs, output) -> None:
    x, weight, _, site_of_row, row_of_site, ctx.side = inputs
    ctx.save_for_backward(x, weight, site_of_row, row_of_site)


def _backward(ctx, grad: Tensor) -> tuple:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    # The forward pass chose the dtype; autocast around backward() must not choose another.
    with torch.autocast(grad.device.type, enabled=False):
        grad_x, grad_weight, grad_bias = _depthwise_backward(
            grad, *ctx.saved_tensors, ctx.side, need_x, need_weight or need_bias
        )
    wanted = zip((grad_x, grad_weight, grad_bias), (need_x, need_weight, need_bias), strict=True)
    return (*(gradient if need else None for gradient, need in wanted), None, None, None)


_depthwise.register_autograd(_backward, setup_context=_setup)
