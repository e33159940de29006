"""The passes of global response normalisation: each makes its outputs and launches one kernel.

Launch configurations are frozen, not tuned at run time: tuning waits for the device, breaks the capture of
CUDA graphs and changes the order of sums.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from sparse_ops.backends.triton_gpu import grn_kernels


@dataclass(frozen=True)
class Launch:
    """Rows and channels of the block that a program holds at a time, and its warps.

    An element for each thread at least: threads that share one would race where a pass overwrites its input.
    """

    rows: int
    channels: int
    warps: int


LAUNCHES = (Launch(8, 256, 4), Launch(32, 64, 4), Launch(4, 256, 4), Launch(16, 256, 8))
"""Of the passes over the rows, for benchmarks and compilation ahead; the first two are defaults."""

PROGRAMS = 8192
"""Wanted for a pass over the rows: eight times what an H200 runs at once, so that the last wave is short."""

TILE = 4096
"""Elements of the block that a program of the small kernels holds, [splits, channels]."""


def default_launch(channels: int) -> Launch:
    """Rows of 512 bytes in 16-bit features, unless that leaves lanes idle."""
    return LAUNCHES[0] if channels % 256 == 0 else LAUNCHES[1]


def num_splits(rows: int, groups: int, channels: int, launch: Launch) -> int:
    """Splits of each group's rows: enough programs, each with four blocks of rows or more."""
    programs = groups * triton.cdiv(channels, launch.channels)
    most = rows // max(1, 4 * groups * launch.rows)
    return max(1, min(PROGRAMS // max(1, programs), most))


def column_sums(
    x: Tensor, grad: Tensor | None, offsets: Tensor, *, gelu: bool, launch: Launch | None = None
) -> Tensor:
    """Sums of h * h, or of grad * h, over the rows of each split of each group, float32 [G, S, D].

    Args:
        x: [N, D], contiguous.
        grad: As `x`, or None.
        offsets: First row of each group, and N, int64 [G + 1].
        gelu: Whether h is gelu(x) or x.
        launch: None: `default_launch`.
    """
    plan = _plan(x, offsets, launch)
    partials = x.new_empty(plan.groups, plan.splits, x.shape[1], dtype=torch.float32)
    _over_rows(grn_kernels.sums_kernel, plan, x, grad, offsets, partials, gelu=gelu)
    return partials


def apply(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    offsets: Tensor,
    *,
    gelu: bool,
    launch: Launch | None = None,
) -> Tensor:
    """h * scale + shift in the dtype of `x`; arguments as in `column_sums`, scale [G, D], shift [D]."""
    out = torch.empty_like(x)
    plan = _plan(x, offsets, launch)
    _over_rows(grn_kernels.apply_kernel, plan, x, scale, shift, offsets, out, gelu=gelu)
    return out


def apply_backward(
    x: Tensor,
    grad: Tensor,
    scale: Tensor,
    pull: Tensor,
    offsets: Tensor,
    *,
    hidden: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and sums over all rows, float32 [D].

    With `hidden` [N, D], h is gelu(x): h * scale is written there, the gradient overwrites `grad`, and the
    sums are of the gradient of x. Without, h is x, `grad` is kept, and the sums are of it.
    """
    plan = _plan(x, offsets, launch)
    grad_x = torch.empty_like(x) if hidden is None else grad
    partials = x.new_empty(plan.groups * plan.splits, x.shape[1], dtype=torch.float32)
    operands = (x, grad, scale, pull, offsets, grad_x, hidden, partials)
    _over_rows(grn_kernels.apply_backward_kernel, plan, *operands, gelu=hidden is not None)
    return grad_x, partials.sum(0)


def scales(partials: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Norms and scale of each group, float32 [G, D], from `column_sums` of h * h."""
    norms, scale = (partials.new_empty(partials.shape[::2]) for _ in range(2))
    _over_groups(grn_kernels.scale_kernel, partials, gamma, norms, scale, eps=eps)
    return norms, scale


def scales_backward(
    partials: Tensor, norms: Tensor, gamma: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, its gradient's pull on h, gamma's gradient, float32 [G, D], from `column_sums` of grad * h."""
    scale, pull, grad_gamma = (torch.empty_like(norms) for _ in range(3))
    outputs = (scale, pull, grad_gamma)
    _over_groups(grn_kernels.scale_backward_kernel, partials, norms, gamma, *outputs, eps=eps)
    return outputs


@dataclass(frozen=True)
class _Plan:
    """Of a pass over the rows of `groups`, each in `splits`."""

    launch: Launch
    groups: int
    splits: int


def _plan(x: Tensor, offsets: Tensor, launch: Launch | None) -> _Plan:
    rows, channels = x.shape
    groups = offsets.shape[0] - 1
    launch = launch or default_launch(channels)
    return _Plan(launch, groups, num_splits(rows, groups, channels, launch))


def _over_rows(kernel: Any, plan: _Plan, x: Tensor, *operands: Tensor | None, gelu: bool) -> None:
    """Launch a pass over the rows."""
    channels, launch = x.shape[1], plan.launch
    programs = plan.groups * plan.splits * triton.cdiv(channels, launch.channels)
    constants = {"GELU": gelu, "ROWS": launch.rows, "CHANNELS": launch.channels}
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *operands, channels, plan.splits, **constants, **_options(launch.warps))


def _over_groups(kernel: Any, partials: Tensor, *operands: Tensor, eps: float) -> None:
    """Launch a kernel with one program a group, which adds the splits and sees all channels."""
    groups, splits, channels = partials.shape
    held = min(triton.next_power_of_2(splits), 16)
    width = min(triton.next_power_of_2(channels), TILE // held)
    constants = {"SPLITS": held, "CHANNELS": width}
    with torch.cuda.device_of(partials):
        kernel[(groups,)](partials, *operands, channels, splits, eps, **constants, **_options(8))


def _options(warps: int) -> dict[str, int]:
    """A multiply-add is one instruction; from Triton 3.10 on only where it is asked for."""
    return {"num_warps": warps, "enable_fp_fusion": True}
