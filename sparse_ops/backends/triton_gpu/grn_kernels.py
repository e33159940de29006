"""Triton kernels of global response normalisation, with or without GELU before it.

Rows are reduced in two stages, without atomics: every program adds the rows of one *split* of an image for a
block of channels, and a second kernel adds the splits in their order. How many splits there are follows from
shapes alone, so the same call gives the same bits. Statistics are float32.

The sums walk the images from the last to the first, the other passes from the first to the last: each starts
with the rows that the pass before it touched last, which may still be in the L2 cache.

GELU is written as `max(x, 0) - |x| * Phi(-|x|)` with `log2 Phi(-z)` a polynomial, fitted on [0, 6] for the
smallest error of GELU: at most 1e-7, float32's own rounding, and less in the tail than `1 + erf(x)` leaves.
By sm_90 machine code (Triton 3.9) it costs 11 instructions an element where `tl.erf` costs 32. While one
bfloat16 element comes in at 4.3 TB/s, an H200 issues 14 to 16: the sums take 15 in all, with erf 36.
"""

# pyright: reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def _tail(x):
    """Phi(-|x|), the normal distribution's tail."""
    z = tl.abs(x)
    power = -2.414870092946069e-06 * z + 3.475733233958318e-05
    power = power * z - 0.00016645395400533754
    power = power * z - 0.0001784479949348101
    power = power * z + 0.007108553053273415
    power = power * z - 0.05252040839875454
    power = power * z - 0.4592026475167174
    power = power * z - 1.1511055866771596
    return tl.exp2(power * z - 1.0)


@triton.jit
def _gelu(x, tail):
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def _gelu_slope(x, tail):
    density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
    return tl.where(x > 0, 1.0 - tail, tail) + x * density


@triton.jit
def _share(offsets, channels, splits, BACKWARDS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's columns, group, split (counted over all groups), first row and last (excluded)."""
    program = tl.program_id(0)
    if BACKWARDS:
        program = tl.num_programs(0) - 1 - program
    blocks = tl.cdiv(channels, CHANNELS)
    columns = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    split = (program // blocks).to(tl.int64)
    group = split // splits
    start, end = tl.load(offsets + group), tl.load(offsets + group + 1)
    share = tl.cdiv(tl.cdiv(end - start, splits), ROWS) * ROWS
    first = start + split % splits * share
    return columns, group, split, first, tl.minimum(first + share, end)


@triton.jit
def sums_kernel(
    x,
    grad,
    offsets,
    partials,
    channels,
    splits,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums over the rows of h * h, or of grad * h where there is a grad; h = gelu(x) or x."""
    columns, _, split, first, last = _share(offsets, channels, splits, True, ROWS, CHANNELS)
    wanted = columns < channels
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for row in range(first, last, ROWS):
        rows = row + tl.arange(0, ROWS)
        at = rows[:, None] * channels + columns[None, :]
        mask = (rows < last)[:, None] & wanted[None, :]
        h = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if GELU:
            h = _gelu(h, _tail(h))
        if grad is None:
            total += h * h
        else:
            total += h * tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(partials + split * channels + columns, tl.sum(total, 0), mask=wanted)


@triton.jit
def apply_kernel(
    x,
    scale,
    shift,
    offsets,
    out,
    channels,
    splits,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """out = h * scale + shift; h = gelu(x) or x, scale of the row's group."""
    columns, group, _, first, last = _share(offsets, channels, splits, False, ROWS, CHANNELS)
    wanted = columns < channels
    factor = tl.load(scale + group * channels + columns, mask=wanted, other=0.0)[None, :]
    if shift is not None:
        constant = tl.load(shift + columns, mask=wanted, other=0.0).to(tl.float32)[None, :]
    for row in range(first, last, ROWS):
        rows = row + tl.arange(0, ROWS)
        at = rows[:, None] * channels + columns[None, :]
        mask = (rows < last)[:, None] & wanted[None, :]
        h = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if GELU:
            h = _gelu(h, _tail(h))
        h *= factor
        if shift is not None:
            h += constant
        tl.store(out + at, h.to(out.dtype.element_ty), mask=mask)


@triton.jit
def apply_backward_kernel(
    x,
    grad,
    scale,
    pull,
    offsets,
    grad_x,
    hidden,
    partials,
    channels,
    splits,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """grad_x = (grad * scale + h * pull) * gelu'(x), and sums over the rows.

    With GELU: also hidden = h * scale, and the sums are of grad_x. Without: the sums are of grad. grad_x may
    be grad itself.
    """
    columns, group, split, first, last = _share(offsets, channels, splits, False, ROWS, CHANNELS)
    wanted = columns < channels
    factor = tl.load(scale + group * channels + columns, mask=wanted, other=0.0)[None, :]
    slope = tl.load(pull + group * channels + columns, mask=wanted, other=0.0)[None, :]
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for row in range(first, last, ROWS):
        rows = row + tl.arange(0, ROWS)
        at = rows[:, None] * channels + columns[None, :]
        mask = (rows < last)[:, None] & wanted[None, :]
        pre = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if GELU:
            tail = _tail(pre)
            h = _gelu(pre, tail)
            tl.store(hidden + at, (h * factor).to(hidden.dtype.element_ty), mask=mask)
            g = (g * factor + h * slope) * _gelu_slope(pre, tail)
            total += g
        else:
            total += g
            g = g * factor + pre * slope
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(partials + split * channels + columns, tl.sum(total, 0), mask=wanted)


@triton.jit
def _add_splits(partials, group, columns, channels, splits, SPLITS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of a group for a block of channels, its splits added in their order."""
    total = tl.zeros((SPLITS, CHANNELS), tl.float32)
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        at = (group * splits + split)[:, None] * channels + columns[None, :]
        mask = (split < splits)[:, None] & (columns < channels)[None, :]
        total += tl.load(partials + at, mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def scale_kernel(
    partials, gamma, norms, scale, channels, splits, eps, SPLITS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Norms of a group's channels and its scale, 1 + gamma * norms / (mean + eps)."""
    group = tl.program_id(0).to(tl.int64)
    total = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, channels, CHANNELS):
        columns = first + tl.arange(0, CHANNELS)
        norm = tl.sqrt(_add_splits(partials, group, columns, channels, splits, SPLITS, CHANNELS))
        total += norm
        tl.store(norms + group * channels + columns, norm, mask=columns < channels)
    mean = tl.sum(total, 0) / channels + eps
    for first in range(0, channels, CHANNELS):
        columns = first + tl.arange(0, CHANNELS)
        # Added again: another thread's store to `norms` could not be read without a barrier.
        norm = tl.sqrt(_add_splits(partials, group, columns, channels, splits, SPLITS, CHANNELS))
        weight = tl.load(gamma + columns, mask=columns < channels, other=0.0).to(tl.float32)
        tl.store(scale + group * channels + columns, 1.0 + weight * (norm / mean), mask=columns < channels)


@triton.jit
def scale_backward_kernel(
    partials,
    norms,
    gamma,
    scale,
    pull,
    grad_gamma,
    channels,
    splits,
    eps,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """From the sums of grad * h: the scale again, its gradient's pull on h, and each group's grad_gamma."""
    group = tl.program_id(0).to(tl.int64)
    total = tl.zeros((CHANNELS,), tl.float32)
    moment = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, channels, CHANNELS):
        columns = first + tl.arange(0, CHANNELS)
        mask = columns < channels
        norm = tl.load(norms + group * channels + columns, mask=mask, other=0.0)
        weight = tl.load(gamma + columns, mask=mask, other=0.0).to(tl.float32)
        change = _add_splits(partials, group, columns, channels, splits, SPLITS, CHANNELS)
        total += norm
        moment += change * weight * norm
    mean = tl.sum(total, 0) / channels + eps
    grad_mean = tl.sum(moment, 0) / (mean * mean * channels)
    for first in range(0, channels, CHANNELS):
        columns = first + tl.arange(0, CHANNELS)
        mask = columns < channels
        norm = tl.load(norms + group * channels + columns, mask=mask, other=0.0)
        weight = tl.load(gamma + columns, mask=mask, other=0.0).to(tl.float32)
        change = _add_splits(partials, group, columns, channels, splits, SPLITS, CHANNELS)
        at = group * channels + columns
        tl.store(scale + at, 1.0 + weight * (norm / mean), mask=mask)
        tl.store(grad_gamma + at, change * (norm / mean), mask=mask)
        # The square root has no slope at 0: an absent channel is pulled nowhere.
        live = norm > 0
        slope = (change * weight / mean - grad_mean) / tl.where(live, norm, 1.0)
        tl.store(pull + at, tl.where(live, slope, 0.0), mask=mask)
