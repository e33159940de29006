"""Parity on the device, before anything is timed: each op of an engine against the float64 reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_ops import ActiveSites, SparseImage, global_response_norm, grn_mlp, subm_conv2d
from sparse_ops.testing import assert_parity, make_sites

OPS = ("subm_conv2d depthwise", "subm_conv2d regular", "global_response_norm", "grn_mlp")


@dataclass(frozen=True, kw_only=True)
class _Problem:
    op: str
    build: Callable[[str], Callable[..., Tensor]]
    shapes: Sequence[Sequence[int]]
    names: Sequence[str]


def parity_cases(stages: Sequence[tuple[int, int]]) -> list[tuple[str, int, int]]:
    """Named sites of `sparse_ops.testing`, tile and channels: each stage's own, so that the kernels which are
    timed are those that are checked, and compiled once; then ragged and irregular sites.
    """
    return [
        *(("random", *stage) for stage in stages),
        ("ragged", *stages[len(stages) // 3]),
        ("irregular", 1, stages[-1][1]),
    ]


def check_op(
    name: str, backend: str, device: torch.device, cases: Sequence[tuple[str, int, int]], dtype: torch.dtype
) -> dict[str, Any]:
    """Hold an op to the error budget of `sparse_ops.testing` in outputs and all gradients.

    Args:
        name: One of `OPS`.
        backend: The engine under test, by name.
        device: Where everything runs.
        cases: See `parity_cases`.
        dtype: Of the features and parameters.
    Returns:
        "op", "backend", "cases" (how many passed) and "failed": None, or the first failure in one line.
    """
    for passed, (case, tile, width) in enumerate(cases):
        problem = _problem(name, sites_on(case, tile, device), width, device)
        try:
            assert_parity(
                problem.op, problem.build, problem.shapes, backend=backend, dtype=dtype, names=problem.names
            )
        # Whatever goes wrong in a kernel means the same: it must not be timed.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            place = f"{case} sites, tile {tile}, {width} channels, {dtype}"
            return {"op": name, "backend": backend, "cases": passed, "failed": f"{place}: {reason}"}
    return {"op": name, "backend": backend, "cases": len(cases), "failed": None}


def sites_on(case: str, tile: int, device: torch.device) -> ActiveSites:
    """`make_sites` on a device."""
    sites = make_sites(case, tile=tile)
    return ActiveSites.from_mask(sites.active.to(device)) if case == "irregular" else _moved(sites, device)


def _moved(sites: ActiveSites, device: torch.device) -> ActiveSites:
    patches = torch.zeros(sites.batch_size * sites.grid[0] * sites.grid[1], dtype=torch.bool)
    patches[sites.patch_of_tile] = True
    visible = patches.view(sites.batch_size, *sites.grid)
    if sites.rows_per_image is None:
        return ActiveSites.from_patches(visible.to(device), tile=sites.tile)
    ids = visible.flatten(1).nonzero()[:, 1].view(sites.batch_size, -1)
    return ActiveSites.from_visible_ids(ids.to(device), grid=sites.grid, tile=sites.tile)


def _problem(name: str, sites: ActiveSites, width: int, device: torch.device) -> _Problem:
    op, _, kind = name.partition(" ")

    def rows(features: Tensor) -> SparseImage:
        return SparseImage(features.to(device), sites)

    def on(*tensors: Tensor) -> list[Tensor]:
        return [tensor.to(device) for tensor in tensors]

    features = (sites.num_sites, width)
    if op == "subm_conv2d":
        groups, kernel = (width, 7) if kind == "depthwise" else (1, 3)
        return _Problem(
            op=op,
            build=lambda backend: (
                lambda f, w, b: (
                    subm_conv2d(rows(f), *on(w, b), groups=groups, backend=backend).features  # type: ignore[union-attr]
                )
            ),
            shapes=[features, (width, width // groups, kernel, kernel), (width,)],
            names=("features", "weight", "bias"),
        )
    if op == "global_response_norm":
        return _Problem(
            op=op,
            build=lambda backend: (
                lambda f, g, b: (
                    global_response_norm(rows(f), *on(g, b), backend=backend).features  # type: ignore[union-attr]
                )
            ),
            shapes=[features, (width,), (width,)],
            names=("features", "gamma", "beta"),
        )

    def mlp(backend: str) -> Callable[..., Tensor]:
        def run(f: Tensor, w1: Tensor, b1: Tensor, g: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
            w1, b1, g, b, w2, b2 = on(w1, b1, g, b, w2, b2)
            return grn_mlp(rows(f), (w1, b1), (g, b), (w2, b2), backend=backend).features  # type: ignore[union-attr]

        return run

    hidden = 4 * width
    return _Problem(
        op=op,
        build=mlp,
        shapes=[features, (hidden, width), (hidden,), (hidden,), (hidden,), (width, hidden), (width,)],
        names=("features", "weight1", "bias1", "gamma", "beta", "weight2", "bias2"),
    )
