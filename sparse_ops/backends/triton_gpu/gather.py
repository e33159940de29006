"""Regular submanifold convolution, groups = 1: neighbours' rows side by side, and one GEMM.

Chunks of rows bound the memory; where they begin depends on the shapes alone.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_ops.linear import linear, linear_wgrad

CHUNK_BYTES = 256 * 2**20
"""Columns that exist at a time."""


def _columns(
    x: Tensor, site_of_row: Tensor, row_of_site: Tensor, kernel: int
) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of rows, and for each the inputs of their taps [n, k * k * C], zeros where there are none."""
    _, height, width = row_of_site.shape
    rows, channels = x.shape
    padded = torch.cat([x, x.new_zeros(1, channels)])
    steps = torch.arange(kernel, device=x.device) - kernel // 2
    step = max(1, CHUNK_BYTES // (kernel * kernel * channels * x.element_size()))
    for first in range(0, rows, step):
        chunk = slice(first, min(first + step, rows))
        site = site_of_row[chunk, None, None]
        y = site // width % height + steps[:, None]
        x0 = site % width + steps
        inside = (y >= 0) & (y < height) & (x0 >= 0) & (x0 < width)
        places = torch.where(inside, site + steps[:, None] * width + steps, 0)
        near = row_of_site.view(-1).index_select(0, places.view(-1))
        near = torch.where(inside.view(-1) & (near >= 0), near, rows)
        yield chunk, padded.index_select(0, near).view(-1, kernel * kernel * channels)


def _as_matrix(weight: Tensor) -> Tensor:
    """[C_out, C_in, k, k] -> [C_out, k * k * C_in]."""
    return weight.permute(0, 2, 3, 1).flatten(1)


@torch.library.custom_op("sparse_ops::gather_conv", mutates_args=())
def gather_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, site_of_row: Tensor, row_of_site: Tensor
) -> Tensor:
    """See `sparse_ops.functional.subm_conv2d`; arguments are checked there."""
    out = x.new_empty(x.shape[0], weight.shape[0])
    for chunk, columns in _columns(x, site_of_row, row_of_site, weight.shape[-1]):
        out[chunk] = linear(columns, _as_matrix(weight), bias)
    return out


@gather_conv.register_fake
def _(x, weight, bias, site_of_row, row_of_site) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("sparse_ops::gather_conv_backward", mutates_args=())
def _gather_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    site_of_row: Tensor,
    row_of_site: Tensor,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    kernel = weight.shape[-1]
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if need_x:
        # The kernel whose forward convolution is the data gradient.
        transposed = weight.flip(2, 3).transpose(0, 1)
        grad_x = gather_conv(grad, transposed, None, site_of_row, row_of_site)
    if need_weight:
        matrix = _as_matrix(weight)
        total = torch.zeros_like(matrix, dtype=torch.promote_types(weight.dtype, torch.float32))
        for chunk, columns in _columns(x, site_of_row, row_of_site, kernel):
            total += linear_wgrad(grad[chunk], columns, matrix)
        taps = total.to(weight.dtype).view(weight.shape[0], kernel, kernel, weight.shape[1])
        grad_weight = taps.permute(0, 3, 1, 2).contiguous()
    return grad_x, grad_weight


@_gather_conv_backward.register_fake
def _(grad, x, weight, site_of_row, row_of_site, need_x, need_weight) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return grad_x, weight.new_empty(weight.shape) if need_weight else weight.new_empty(0)


def _setup(ctx, inputs, output) -> None:
    x, weight, _, site_of_row, row_of_site = inputs
    ctx.save_for_backward(x, weight, site_of_row, row_of_site)


def _backward(ctx, grad: Tensor) -> tuple:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    # The forward pass chose the dtype; autocast around backward() must not choose another.
    with torch.autocast(grad.device.type, enabled=False):
        grad_x, grad_weight = _gather_conv_backward(
            grad.contiguous(), *ctx.saved_tensors, need_x, need_weight
        )
    grad_bias = grad.sum(0) if need_bias else None
    return grad_x if need_x else None, grad_weight if need_weight else None, grad_bias, None, None


gather_conv.register_autograd(_backward, setup_context=_setup)
