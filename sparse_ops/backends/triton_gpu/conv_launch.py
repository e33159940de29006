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

WGRAD_PROGRAMS = 512
"""Programs of a weight gradient: two waves on the largest GPU, and few enough partial sums."""

WGRAD_STEPS = 4
"""Fewest blocks of cells that a program of a weight gradient sums, or its partial sums outweigh its input."""


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


# Two channels a thread fill the registers where a halo meets 16 sums, or 49 taps are sums.
NARROW = (Config(4, 64), Config(8, 32), Config(16, 16))
# Elsewhere four channels share the arithmetic of a look-up.
WIDE = (Config(4, 128), Config(8, 64), Config(16, 32))


def config_for(channels: int, configs: tuple[Config, ...]) -> Config:
    """The configuration that pads the channels least; of equals the widest."""
    return min(configs, key=lambda config: triton.cdiv(channels, config.block_c) * config.block_c)


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
            # The kernels say where a multiply-add is one instruction; Triton 3.9 warns where this is open.
            enable_fp_fusion=True,
        )


def taps_and_bias(weight: Tensor, bias: Tensor | None, *, flipped: bool) -> Tensor:
    """[C, 1, k, k] and [C] -> float32 [k * k + 1, C]; flipped, the forward gives the data gradient."""
    taps = weight.flatten(1).t().float()
    rows = taps.flip(0) if flipped else taps
    last = taps.new_zeros(1, taps.shape[1]) if bias is None else bias[None].float()
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
    unrolled = kernel <= UNROLLED
    config = config or config_for(channels, NARROW if unrolled and side == 4 else WIDE)
    n_cells = rows // side**2 if unrolled else rows
    grid = (triton.cdiv(n_cells, config.cells), triton.cdiv(channels, config.block_c))
    operands = (x, taps, site_of_row, row_of_site, out, n_cells, *row_of_site.shape[1:])
    if unrolled:
        _launch(conv_kernels.conv_forward, grid, config, *operands, C=channels, SIDE=side, K=kernel)
    else:
        _launch(conv_kernels.any_forward, grid, config, *operands, kernel, C=channels)
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
    unrolled = kernel <= UNROLLED
    config = config or config_for(channels, NARROW if unrolled else WIDE)
    n_cells = rows // side**2 if unrolled else rows
    blocks, groups = triton.cdiv(channels, config.block_c), triton.cdiv(n_cells, config.cells)
    steps = max(WGRAD_STEPS, triton.cdiv(groups * blocks, WGRAD_PROGRAMS))
    programs = triton.cdiv(groups, steps)
    shape = (programs * config.cells, kernel * kernel + 1, channels)
    partial = x.new_empty(shape, dtype=torch.float32)
    operands = (x, grad, site_of_row, row_of_site, partial, n_cells, steps * config.cells)
    operands = (*operands, *row_of_site.shape[1:])
    if rows and unrolled:
        _launch(
            conv_kernels.conv_wgrad, (programs, blocks), config, *operands, C=channels, SIDE=side, K=kernel
        )
    elif rows:
        grid = (programs, blocks, kernel * kernel + 1)
        _launch(conv_kernels.any_wgrad, grid, config, *operands, kernel, C=channels)
    total = partial.sum(0)
    return total[:-1].t().reshape(channels, 1, kernel, kernel), total[-1]
