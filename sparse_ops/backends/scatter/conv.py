"""Submanifold k x k convolution through PyTorch's dense kernels, with a hand-written backward.

Two arrangements. *Tiles* (side 4 and more): each visible tile is gathered with its halo, [P, t + k - 1, t +
k - 1, C], and a convolution without padding runs over them, so masked sites cost nothing. *Grid* (smaller
tiles, irregular sites): the rows are scattered to the dense grid, which is small there. Both directions
gather or copy rows, never scatter-add.

The depthwise weight gradient is a depthwise convolution too: with the output gradient as the kernel. oneDNN
runs that 3 to 11 times faster than its own weight-gradient kernel in channels-last (torch 2.15, 56 x 56 x
96 to 7 x 7 x 768).
"""

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.checks import require_no_tangents
from sparse_ops.sites import ActiveSites

SMALLEST_TILE = 4
"""Below this side a halo of 3 makes tiles dearer than the grid."""

WGRAD_CHANNELS = 4096
"""Channels of one weight-gradient convolution: more, and neighbouring pixels fall into other pages."""


def subm_conv2d(
    features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites, groups: int
) -> Tensor:
    """See `sparse_ops.functional.subm_conv2d`; arguments are checked there."""
    require_no_tangents("subm_conv2d", features, weight, bias)
    if sites.tile >= SMALLEST_TILE:
        halo = sites.halo_rows(weight.shape[-1] // 2)
        return _tile_conv(features, weight, bias, halo, sites.order, groups)
    grid = (sites.batch_size, sites.height, sites.width)
    return _grid_conv(features, weight, bias, sites.site_of_row, grid, groups)


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """The kernel whose forward convolution is the data gradient."""
    flipped = weight.flip(2, 3)
    return flipped if groups > 1 else flipped.transpose(0, 1)


def _fast_wgrad(x: Tensor, groups: int) -> bool:
    """Whether oneDNN runs a depthwise convolution whose kernels are tiles of gradients."""
    return groups > 1 and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def _dense_wgrad(x: Tensor, grad: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """PyTorch's own weight gradient; x, grad [B, H, W, C]."""
    return torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight,
        None,
        [1, 1],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        groups,
        [False, True, False],
    )[1]


def _conv_nhwc(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
    """Dense convolution of [B, H, W, C], channels last."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=groups).permute(0, 2, 3, 1)


def _depthwise_wgrad(x: Tensor, grad: Tensor, kernel: int, padding: int) -> Tensor:
    """Depthwise weight gradient as one convolution whose channels are (image, channel).

    x [S, S, P, C] with channels last, grad [P, C, t, t] -> [P, C, k, k] summed over P in float32, [C, 1, k,
    k].
    """
    side, _, images, channels = x.shape
    planes = x.reshape(1, side, x.shape[1], images * channels).permute(0, 3, 1, 2)
    kernels = grad.reshape(images * channels, 1, *grad.shape[2:])
    out = F.conv2d(planes, kernels, padding=padding, groups=images * channels)
    taps = out.permute(0, 2, 3, 1).reshape(kernel * kernel, images, channels)
    return taps.sum(1, dtype=torch.float32).t().reshape(channels, 1, kernel, kernel)


@torch.library.custom_op("sparse_ops::tile_conv", mutates_args=())
def _tile_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, halo: Tensor, order: Tensor, groups: int
) -> Tensor:
    tiles = _gather_halo(x, halo, weight.shape[-1] + isqrt(order.numel()) - 1)
    return _zorder(_conv_nhwc(tiles, weight, bias, 0, groups), order)


@_tile_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, halo: Tensor, order: Tensor, groups: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _gather_halo(x: Tensor, halo: Tensor, side: int) -> Tensor:
    """Rows [N, C] -> tiles with their halo [P, side, side, C], zeros at inactive sites."""
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return padded.index_select(0, halo).view(-1, side, side, x.shape[1])


def _zorder(tiles: Tensor, order: Tensor) -> Tensor:
    """[P, t, t, C] -> rows [P * t * t, C]."""
    return tiles.reshape(-1, order.numel(), tiles.shape[-1]).index_select(1, order).flatten(0, 1)


def _row_major(rows: Tensor, order: Tensor) -> Tensor:
    """Rows [P * t * t, C] -> [P, t, t, C]."""
    tile = isqrt(order.numel())
    tiles = rows.view(-1, order.numel(), rows.shape[1]).index_select(1, order.argsort())
    return tiles.view(-1, tile, tile, rows.shape[1])


@torch.library.custom_op("sparse_ops::tile_conv_backward", mutates_args=())
def _tile_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    halo: Tensor,
    order: Tensor,
    groups: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    kernel, channels = weight.shape[-1], x.shape[1]
    side = kernel + isqrt(order.numel()) - 1
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if need_x:
        tiles = _gather_halo(grad, halo, side)
        grad_x = _zorder(_conv_nhwc(tiles, _transposed(weight, groups), None, 0, groups), order)
    if need_weight and not _fast_wgrad(x, groups):
        tiles = _gather_halo(x, halo, side)
        grad_weight = _dense_wgrad(tiles, _row_major(grad, order), weight, 0, groups)
    elif need_weight:
        padded = torch.cat([x, x.new_zeros(1, channels)])
        halo = halo.view(-1, side * side)
        kernels = _row_major(grad, order).permute(0, 3, 1, 2)
        total = torch.zeros(weight.shape, dtype=torch.float32)
        step = max(1, WGRAD_CHANNELS // channels)
        for first in range(0, halo.shape[0], step):
            rows = halo[first : first + step].t().reshape(-1)
            tiles = padded.index_select(0, rows).view(side, side, -1, channels)
            total += _depthwise_wgrad(tiles, kernels[first : first + step], kernel, 0)
        grad_weight = total.to(weight.dtype)
    # Contiguous, as the fake kernels promise: aten returns a channels-last weight gradient.
    return grad_x, grad_weight.contiguous()


@_tile_conv_backward.register_fake
def _(grad, x, weight, halo, order, groups, need_x, need_weight) -> tuple[Tensor, Tensor]:
    return _empty_gradients(x, weight, need_x, need_weight)


def _empty_gradients(x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return grad_x, weight.new_empty(weight.shape) if need_weight else weight.new_empty(0)


@torch.library.custom_op("sparse_ops::grid_conv", mutates_args=())
def _grid_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, site_of_row: Tensor, grid: list[int], groups: int
) -> Tensor:
    dense = _conv_nhwc(_scatter(x, site_of_row, grid), weight, bias, weight.shape[-1] // 2, groups)
    return dense.reshape(-1, weight.shape[0]).index_select(0, site_of_row)


@_grid_conv.register_fake
def _(x, weight, bias, site_of_row, grid, groups) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _scatter(x: Tensor, site_of_row: Tensor, grid: list[int]) -> Tensor:
    """Rows [N, C] -> [B, H, W, C], zeros at inactive sites."""
    batch_size, height, width = grid
    dense = x.new_zeros(batch_size * height * width, x.shape[1])
    return dense.index_copy_(0, site_of_row, x).view(batch_size, height, width, x.shape[1])


@torch.library.custom_op("sparse_ops::grid_conv_backward", mutates_args=())
def _grid_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    site_of_row: Tensor,
    grid: list[int],
    groups: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    kernel = weight.shape[-1]
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    dense_grad = _scatter(grad, site_of_row, grid)
    if need_x:
        dense = _conv_nhwc(dense_grad, _transposed(weight, groups), None, kernel // 2, groups)
        grad_x = dense.reshape(-1, x.shape[1]).index_select(0, site_of_row)
    if need_weight:
        dense_x = _scatter(x, site_of_row, grid)
        if _fast_wgrad(x, groups):
            kernels = dense_grad.permute(0, 3, 1, 2)
            grad_weight = _depthwise_wgrad(dense_x.permute(1, 2, 0, 3), kernels, kernel, kernel // 2)
            grad_weight = grad_weight.to(weight.dtype)
        else:
            grad_weight = _dense_wgrad(dense_x, dense_grad, weight, kernel // 2, groups)
    # Contiguous, as the fake kernels promise: aten returns a channels-last weight gradient.
    return grad_x, grad_weight.contiguous()


@_grid_conv_backward.register_fake
def _(grad, x, weight, site_of_row, grid, groups, need_x, need_weight) -> tuple[Tensor, Tensor]:
    return _empty_gradients(x, weight, need_x, need_weight)


def _gradients(
    ctx, grad: Tensor, x: Tensor, weight: Tensor, index: tuple, backward: Callable[..., tuple[Tensor, Tensor]]
) -> tuple:
    """Gradients of (x, weight, bias); `index` is what the op takes between them and groups."""
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_x = grad_weight = None
    if need_x or need_weight:
        # The forward pass chose the dtype; autocast around backward() must not choose another.
        with torch.autocast(x.device.type, enabled=False):
            grad_x, grad_weight = backward(
                grad.contiguous(), x, weight, *index, ctx.groups, need_x, need_weight
            )
    grad_bias = grad.sum(0) if need_bias else None
    return grad_x if need_x else None, grad_weight if need_weight else None, grad_bias, None, None, None


def _setup_tile(ctx, inputs, output) -> None:
    x, weight, _, halo, order, ctx.groups = inputs
    ctx.save_for_backward(x, weight, halo, order)


def _backward_tile(ctx, grad: Tensor) -> tuple:
    # Unpacked once: activation checkpointing allows no second time.
    x, weight, *index = ctx.saved_tensors
    return _gradients(ctx, grad, x, weight, tuple(index), _tile_conv_backward)


def _setup_grid(ctx, inputs, output) -> None:
    x, weight, _, site_of_row, ctx.grid, ctx.groups = inputs
    ctx.save_for_backward(x, weight, site_of_row)


def _backward_grid(ctx, grad: Tensor) -> tuple:
    x, weight, site_of_row = ctx.saved_tensors
    return _gradients(ctx, grad, x, weight, (site_of_row, ctx.grid), _grid_conv_backward)


_tile_conv.register_autograd(_backward_tile, setup_context=_setup_tile)
_grid_conv.register_autograd(_backward_grid, setup_context=_setup_grid)
