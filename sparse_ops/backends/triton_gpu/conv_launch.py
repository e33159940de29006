"""Launches of the convolution kernels: configurations, grids and the layout of the taps."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from sparse_ops.backends.triton_gpu import conv_kernels

UNROLLED = 7
"""Largest kernel side whose taps are unrolled; larger ones run a loop."""

WGRAD_PROGRAMS = 1024
"""Programs of a weight gradient: some waves on the largest GPU, while the partial sums stay small."""

WGRAD_STEPS = 4
"""Fewest groups of cells a program of a weight gradient sums, or its partial sums outweigh its input."""


@dataclass(frozen=True)
class Config:
    """How a kernel is launched. One choice for each problem, not timed at run time: that would wait for the
    device, and another choice would change the weight gradient's bits.

    Attributes:
        cells: Cells of a block (rows, in the kernels that do not unroll).
        block_c: Channels of a block.
        num_warps: Warps of a program. More threads than a cell has channels take more cells.
    """

    cells: int
    block_c: int
    num_warps: int = 4


# Two channels a thread: half the loads of one, and registers enough for 49 taps and 16 sums.
CONFIGS = (Config(4, 64), Config(8, 32), Config(16, 16))


def config_for(channels: int) -> Config:
    """The configuration that pads the channels least; of equals the widest."""
    return min(CONFIGS, key=lambda config: triton.cdiv(channels, config.block_c) * config.block_c)


def _launch(
    kernel: Any, grid: tuple[int, ...], config: Config, *operands: Tensor | int, **sizes: int
) -> None:
    x = operands[0]
    assert isinstance(x, Tensor)
    # Triton launches on the current device.
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        kernel[grid](
            *operands,
            **sizes,
            CELLS=config.cells,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            # A multiply-add is one instruction; from Triton 3.10 on only where it is asked for.
            enable_fp_fusion=True,
        )


def taps_and_bias(weight: Tensor, bias: Tensor | None, *, flipped: bool) -> Tensor:
    """[C, 1, k, k] and [C] -> [k * k + 1, C]; flipped, the forward's kernel gives the data gradient."""
    taps = weight.flatten(1).t()
    rows = taps.flip(0) if flipped else taps
    last = weight.new_zeros(1, weight.shape[0]) if bias is None else bias[None]
    return torch.cat([rows, last])


def forward_rows(
    x: Tensor,
    taps: Tensor,
    site_of_row: Tensor,
    row_of_site: Tensor,
    *,
    kernel: int,
    side: int,
    config: Config | None = None,
) -> Tensor:
    """The convolution of rows [N, C] with `taps_and_bias`, in cells of `side`."""
    out = torch.empty_like(x)
    rows, channels = x.shape
    if rows == 0:
        return out
    config = config or config_for(channels)
    unrolled = kernel <= UNROLLED
    n_cells = rows // side**2 if unrolled else rows
    grid = (triton.cdiv(n_cells, config.cells), triton.cdiv(channels, config.block_c))
    operands = (x, taps, site_of_row, row_of_site, out, n_cells, channels, *row_of_site.shape[1:])
    if unrolled:
        _launch(conv_kernels.conv_forward, grid, config, *operands, SIDE=side, K=kernel)
    else:
        _launch(conv_kernels.any_forward, grid, config, *operands, kernel)
    return out


def weight_gradient(
    x: Tensor,
    grad: Tensor,
    site_of_row: Tensor,
    row_of_site: Tensor,
    *,
    kernel: int,
    side: int,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight [C, 1, k, k] and the bias [C], in float32.

    Each program sums a fixed share of the cells, and a second pass adds the shares in a fixed order.
    """
    rows, channels = x.shape
    config = config or config_for(channels)
    unrolled = kernel <= UNROLLED
    n_cells = rows // side**2 if unrolled else rows
    blocks, groups = triton.cdiv(channels, config.block_c), triton.cdiv(n_cells, config.cells)
    splits = max(1, min(WGRAD_PROGRAMS // blocks, groups // WGRAD_STEPS))
    cells_per_split = triton.cdiv(groups, splits) * config.cells
    splits = triton.cdiv(n_cells, cells_per_split) if rows else 0
    partial = x.new_empty((splits, kernel * kernel + 1, channels), dtype=torch.float32)
    operands = (x, grad, site_of_row, row_of_site, partial, n_cells, cells_per_split, channels)
    operands = (*operands, *row_of_site.shape[1:])
    if rows and unrolled:
        _launch(conv_kernels.conv_wgrad, (splits, blocks), config, *operands, SIDE=side, K=kernel)
    elif rows:
        grid = (splits, blocks, kernel * kernel + 1)
        _launch(conv_kernels.any_wgrad, grid, config, *operands, kernel)
    total = partial.sum(0)
    return total[:-1].t().reshape(channels, 1, kernel, kernel), total[-1]
