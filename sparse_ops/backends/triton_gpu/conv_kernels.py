# What Triton compiles is a language of its own: tuples grow by addition, static_range is no iterable.
# ruff: noqa: RUF005, SIM300
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
"""Kernels of the depthwise submanifold convolution.

A *cell* is a square of active sites whose rows are consecutive and in Z-order: side 4, 2 or 1, the largest
that the tile allows, so irregular sites are cells of side 1 and one kernel covers every pattern. A cell's
neighbours are cells of the same side, each whole or absent: one look-up in `row_of_site` for each, not one
for each site and tap. Inside a cell every row's place is a compile-time constant.

Values are blocks [CELLS, BLOCK_C] of which a thread holds one cell and a few consecutive channels. Arrays of
them (a cell's sums, the taps) are tuples that unrolled loops rebuild, as Triton cannot index registers.

`any_*` are for kernels too large to unroll: a loop at run time over the taps, and a look-up for each row.
"""

import triton
import triton.language as tl


@triton.jit
def _locate(site_of_row, row_of_site, first_cell, n_cells, H, W, CELLS: tl.constexpr, SIDE: tl.constexpr):
    """Each cell's first row, its entry in `row_of_site`, its y and x, and whether it exists; [CELLS, 1]."""
    cell = first_cell + tl.arange(0, CELLS)[:, None]
    exists = cell < n_cells
    row = cell.to(tl.int64) * (SIDE * SIDE)
    site = tl.load(site_of_row + row, mask=exists, other=0)
    # 32 bits do for y and x, and halve the arithmetic of every look-up.
    return row, row_of_site + site, (site // W % H).to(tl.int32), (site % W).to(tl.int32), exists


@triton.jit
def _channels(C: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's channels and whether they exist, as whole blocks [CELLS, BLOCK_C]: what is loaded for
    every cell then has the rows' layout, where a broadcast would cross shared memory."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :] + tl.zeros([CELLS, 1], tl.int32)
    return c, c < C


@triton.jit
def _neighbour(entry, y, x, exists, H, W, down, right):
    """First row of the cells `down` and `right` of these, or -1 where they are absent, [CELLS, 1]."""
    inside = exists & (y + down >= 0) & (y + down < H) & (x + right >= 0) & (x + right < W)
    return tl.load(entry + (down * W + right), mask=inside, other=-1)


@triton.jit
def _load_site(cells, present, C: tl.constexpr, Y: tl.constexpr, X: tl.constexpr):
    """Site (Y, X) of the cells that begin at the pointers `cells`: its place in Z-order, as float32."""
    row = (X & 1) + 2 * (Y & 1) + 2 * (X & 2) + 4 * (Y & 2)
    return tl.load(cells + row * C, mask=present, other=0.0).to(tl.float32)


@triton.jit
def _store_site(cells, value, present, C: tl.constexpr, Y: tl.constexpr, X: tl.constexpr):
    """The counterpart of `_load_site`."""
    row = (X & 1) + 2 * (Y & 1) + 2 * (X & 2) + 4 * (Y & 2)
    tl.store(cells + row * C, value.to(cells.dtype.element_ty), mask=present)


@triton.jit
def _add_to_outputs(sums, value, taps, Y: tl.constexpr, X: tl.constexpr, SIDE: tl.constexpr, K: tl.constexpr):
    """Add the input at (Y, X) of the halo to the sums of all the cell's sites that it reaches."""
    new = ()
    for i in tl.static_range(SIDE * SIDE):
        if (Y >= i // SIDE) & (Y < i // SIDE + K) & (X >= i % SIDE) & (X < i % SIDE + K):
            new = new + (tl.fma(value, taps[(Y - i // SIDE) * K + X - i % SIDE], sums[i]),)
        else:
            new = new + (sums[i],)
    return new


@triton.jit
def _add_to_taps(sums, value, grads, Y: tl.constexpr, X: tl.constexpr, SIDE: tl.constexpr, K: tl.constexpr):
    """Add the input at (Y, X) of the halo, times the gradients that it meets, to the sums of the taps."""
    new = ()
    for i in tl.static_range(K * K):
        if (Y >= i // K) & (Y < i // K + SIDE) & (X >= i % K) & (X < i % K + SIDE):
            new = new + (tl.fma(value, grads[(Y - i // K) * SIDE + X - i % K], sums[i]),)
        else:
            new = new + (sums[i],)
    return new


@triton.jit(do_not_specialize=["n_cells", "H", "W"])
def conv_forward(
    x,
    taps_and_bias,
    site_of_row,
    row_of_site,
    out,
    n_cells,
    H,
    W,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """CELLS cells x BLOCK_C channels a program: each site of a cell's halo is loaded once and added to every
    output that it reaches. taps_and_bias is [K * K + 1, C] in float32, which spares the conversions."""
    row, entry, y, x0, exists = _locate(
        site_of_row, row_of_site, tl.program_id(0) * CELLS, n_cells, H, W, CELLS, SIDE
    )
    c, in_width = _channels(C, CELLS, BLOCK_C)
    bias = tl.load(taps_and_bias + K * K * C + c, mask=in_width, other=0.0)
    taps, sums = (), ()
    for _ in tl.static_range(SIDE * SIDE):
        sums = sums + (bias,)
    # Neighbours reach REACH cells far; of the square that they fill, the halo leaves out SKIP on each side.
    REACH: tl.constexpr = (K // 2 + SIDE - 1) // SIDE
    SKIP: tl.constexpr = REACH * SIDE - K // 2
    for v in tl.static_range(2 * REACH + 1):
        cells, present = (), ()
        for u in tl.static_range(2 * REACH + 1):
            near = _neighbour(entry, y, x0, exists, H, W, (v - REACH) * SIDE, (u - REACH) * SIDE)
            cells = cells + (x + c + near.to(tl.int64) * C,)
            present = present + ((near >= 0) & in_width,)
        for Y in tl.static_range(v * SIDE, v * SIDE + SIDE):
            for X in tl.static_range(SKIP, SKIP + SIDE + K - 1):
                if (Y >= SKIP) & (Y < SKIP + SIDE + K - 1):
                    value = _load_site(cells[X // SIDE], present[X // SIDE], C, Y % SIDE, X % SIDE)
                    # In this order each site brings the next tap; loaded here, few live at a time.
                    if (Y < SKIP + K) & (X < SKIP + K):
                        place = taps_and_bias + ((Y - SKIP) * K + X - SKIP) * C + c
                        taps = taps + (tl.load(place, mask=in_width, other=0.0),)
                    sums = _add_to_outputs(sums, value, taps, Y - SKIP, X - SKIP, SIDE, K)
    for i in tl.static_range(SIDE * SIDE):
        _store_site(out + c + row * C, sums[i], exists & in_width, C, i // SIDE, i % SIDE)


@triton.jit(do_not_specialize=["n_cells", "cells_per_program", "H", "W"])
def conv_wgrad(
    x,
    grad,
    site_of_row,
    row_of_site,
    partial,
    n_cells,
    cells_per_program,
    H,
    W,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over a share of the cells, CELLS of partial [splits, K * K + 1, C]: a gradient for each tap, then
    the bias's. All taps stay in registers, so a halo is loaded once; and each cell of the block keeps its own
    sums, since adding 50 of them across warps would take 200 barriers."""
    c, in_width = _channels(C, CELLS, BLOCK_C)
    sums = ()
    for _ in tl.static_range(K * K):
        sums = sums + (tl.zeros([CELLS, BLOCK_C], tl.float32),)
    bias = tl.zeros([CELLS, BLOCK_C], tl.float32)
    REACH: tl.constexpr = (K // 2 + SIDE - 1) // SIDE
    SKIP: tl.constexpr = REACH * SIDE - K // 2
    END: tl.constexpr = SKIP + SIDE + K - 1
    first = tl.program_id(0) * cells_per_program
    for step in range(0, cells_per_program, CELLS):
        row, entry, y, x0, exists = _locate(
            site_of_row, row_of_site, first + step, n_cells, H, W, CELLS, SIDE
        )
        grads = ()
        for i in tl.static_range(SIDE * SIDE):
            value = _load_site(grad + c + row * C, exists & in_width, C, i // SIDE, i % SIDE)
            grads = grads + (value,)
            bias += value
        for v in tl.static_range(2 * REACH + 1):
            for u in tl.static_range(2 * REACH + 1):
                near = _neighbour(entry, y, x0, exists, H, W, (v - REACH) * SIDE, (u - REACH) * SIDE)
                cells, present = x + c + near.to(tl.int64) * C, (near >= 0) & in_width
                for Y in tl.static_range(v * SIDE, v * SIDE + SIDE):
                    for X in tl.static_range(u * SIDE, u * SIDE + SIDE):
                        if (Y >= SKIP) & (Y < END) & (X >= SKIP) & (X < END):
                            value = _load_site(cells, present, C, Y % SIDE, X % SIDE)
                            sums = _add_to_taps(sums, value, grads, Y - SKIP, X - SKIP, SIDE, K)
    split = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)[:, None]
    place = partial + split * (K * K + 1) * C + c
    for i in tl.static_range(K * K):
        tl.store(place + i * C, sums[i], mask=in_width)
    tl.store(place + K * K * C, bias, mask=in_width)


@triton.jit(do_not_specialize=["n_cells", "H", "W", "K"])
def any_forward(
    x,
    taps_and_bias,
    site_of_row,
    row_of_site,
    out,
    n_cells,
    H,
    W,
    K,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`conv_forward` for any K, CELLS rows x BLOCK_C channels a program."""
    row, entry, y, x0, exists = _locate(
        site_of_row, row_of_site, tl.program_id(0) * CELLS, n_cells, H, W, CELLS, 1
    )
    c, in_width = _channels(C, CELLS, BLOCK_C)
    sums = tl.load(taps_and_bias + K * K * C + c, mask=in_width, other=0.0)
    for i in range(K * K):
        near = _neighbour(entry, y, x0, exists, H, W, i // K - K // 2, i % K - K // 2)
        value = _load_site(x + c + near.to(tl.int64) * C, (near >= 0) & in_width, C, 0, 0)
        tap = tl.load(taps_and_bias + i * C + c, mask=in_width, other=0.0)
        sums = tl.fma(value, tap, sums)
    _store_site(out + c + row * C, sums, exists & in_width, C, 0, 0)


@triton.jit(do_not_specialize=["n_cells", "cells_per_program", "H", "W", "K"])
def any_wgrad(
    x,
    grad,
    site_of_row,
    row_of_site,
    partial,
    n_cells,
    cells_per_program,
    H,
    W,
    K,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`conv_wgrad` for any K: one tap a program; tap K * K is the bias, which meets ones."""
    c, in_width = _channels(C, CELLS, BLOCK_C)
    tap = tl.program_id(2)
    sums = tl.zeros([CELLS, BLOCK_C], tl.float32)
    first = tl.program_id(0) * cells_per_program
    for step in range(0, cells_per_program, CELLS):
        row, entry, y, x0, exists = _locate(site_of_row, row_of_site, first + step, n_cells, H, W, CELLS, 1)
        near = _neighbour(entry, y, x0, exists, H, W, tap // K - K // 2, tap % K - K // 2)
        value = _load_site(x + c + near.to(tl.int64) * C, (near >= 0) & in_width, C, 0, 0)
        value = tl.where(tap == K * K, 1.0, value)
        sums = tl.fma(value, _load_site(grad + c + row * C, exists & in_width, C, 0, 0), sums)
    split = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)[:, None]
    tl.store(partial + (split * (K * K + 1) + tap) * C + c, sums, mask=in_width)
