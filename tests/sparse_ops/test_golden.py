"""Tensors that MinkowskiEngine and the original's sparse modules made, from their own weight layout.

tests/golden/README.md says how they were recorded: float64, dense [B, C, H, W], zeros at inactive sites.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops import (
    ActiveSites,
    BackendUnavailableError,
    SparseImage,
    downsample_conv2d,
    global_response_norm,
    grn_mlp,
    subm_conv2d,
)
from sparse_ops.backends.minkowski_adapter import from_minkowski, to_minkowski
from sparse_ops.foreign import in_our_order, missing

GOLDEN = Path(__file__).parents[1] / "golden"

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest error, as a part of the largest value."""

ENGINES = [
    ("reference", torch.float32),
    ("reference", torch.float64),
    ("scatter", torch.float32),
    ("scatter", torch.float64),
    ("triton", torch.float32),
]
engines = pytest.mark.parametrize(("backend", "dtype"), ENGINES)


def load(name: str) -> dict[str, Any]:
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def sites_of(mask: Tensor, tile: int) -> ActiveSites:
    """The sites of a recorded mask [B, 1, H, W], of which patches are tiles of a side."""
    active = mask[:, 0].bool()
    sites = ActiveSites.from_patches(active[:, ::tile, ::tile].contiguous(), tile=tile)
    assert torch.equal(sites.active, active), "the recorded mask is not of such tiles"
    return sites


def rows(dense: Tensor, sites: ActiveSites) -> Tensor:
    """[B, C, H, W] -> [N, C]."""
    return SparseImage.from_dense(dense.permute(0, 2, 3, 1), sites).features


def assert_reproduced(
    op: Callable[..., SparseImage],
    golden: dict[str, Any],
    tile: int,
    dtype: torch.dtype,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> None:
    """Hold `op(x, *parameters)` to the recorded output, and its gradients to the recorded ones."""
    sites = sites_of(golden["mask"], tile)
    features = rows(golden["x"], sites)
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in (features, *parameters)]
    try:
        out = op(SparseImage(leaves[0], sites), *leaves[1:])
    except BackendUnavailableError as error:  # Triton, where it is not installed or not interpreted
        pytest.skip(str(error).splitlines()[-1].strip())
    steps = rows(golden["grad_out"], out.sites).to(dtype)
    actual = [out.features.detach(), *torch.autograd.grad(out.features, leaves, steps)]
    recorded = [rows(golden["out"], out.sites), rows(golden["grad_x"], sites), *gradients]
    for index, (result, truth) in enumerate(zip(actual, recorded, strict=True)):
        error = (result.double() - truth).abs().max() / truth.abs().max()
        assert result.shape == truth.shape and float(error) <= BOUNDS[dtype], (
            f"result {index} (output, then gradients of features and parameters): error {float(error):.1e}"
        )


@engines
@pytest.mark.parametrize(
    ("name", "tile"),
    [("me_dwconv_k7_patch", 4), ("me_dwconv_k7_patch", 1), ("me_dwconv_k3_irregular", 1)],
)
def test_depthwise(name: str, tile: int, backend: str, dtype: torch.dtype) -> None:
    golden = load(name)
    if backend == "triton" and len(golden["me_kernel"]) == 49 and tile == 1:
        pytest.skip("Triton's interpreter takes 45 s for 912 tiles of one site")

    def op(x, kernel, bias):
        weight = from_minkowski(kernel, depthwise=True)
        return subm_conv2d(x, weight, bias, groups=len(weight), backend=backend)

    gradients = (golden["me_grad_kernel"], golden["grad_bias"])
    assert_reproduced(op, golden, tile, dtype, (golden["me_kernel"], golden["bias"]), gradients)


@engines
def test_regular(backend: str, dtype: torch.dtype) -> None:
    golden = load("me_subm3x3")

    def op(x, kernel, bias):
        return subm_conv2d(x, from_minkowski(kernel), bias, backend=backend)

    gradients = (golden["me_grad_kernel"], golden["grad_bias"])
    assert_reproduced(op, golden, 1, dtype, (golden["me_kernel"], golden["bias"]), gradients)


@engines
def test_downsample(backend: str, dtype: torch.dtype) -> None:
    golden = load("me_down2x2")

    def op(x, kernel, bias):
        return downsample_conv2d(x, from_minkowski(kernel), bias, backend=backend)

    gradients = (golden["me_grad_kernel"], golden["grad_bias"])
    assert_reproduced(op, golden, 4, dtype, (golden["me_kernel"], golden["bias"]), gradients)


@engines
def test_grn_over_the_batch(backend: str, dtype: torch.dtype) -> None:
    golden = load("me_grn")

    def op(x, gamma, beta):
        return global_response_norm(x, gamma[0], beta[0], scope="batch", backend=backend)

    names = ("gamma", "beta")
    parameters, gradients = ([golden[part][name] for name in names] for part in ("state", "grads"))
    assert_reproduced(op, golden, 2, dtype, parameters, gradients)


def test_layer_norm_of_rows_is_the_originals() -> None:
    golden = load("me_layernorm")

    def op(x, weight, bias):
        return x.map(lambda rows: F.layer_norm(rows, rows.shape[1:], weight, bias, eps=1e-6))

    names = ("ln.weight", "ln.bias")
    parameters, gradients = ([golden[part][name] for name in names] for part in ("state", "grads"))
    for dtype in BOUNDS:
        assert_reproduced(op, golden, 2, dtype, parameters, gradients)


@engines
def test_block(backend: str, dtype: torch.dtype) -> None:
    golden = load("me_block")
    names = list(golden["state"])

    def op(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        weight = from_minkowski(state["dwconv.kernel"], depthwise=True)
        y = subm_conv2d(x, weight, state["dwconv.bias"][0], groups=len(weight), backend=backend)
        norm = (state["norm.ln.weight"], state["norm.ln.bias"])
        y = y.map(lambda rows: F.layer_norm(rows, rows.shape[1:], *norm, eps=1e-6))
        fc1, fc2 = ((state[f"pwconv{i}.linear.weight"], state[f"pwconv{i}.linear.bias"]) for i in (1, 2))
        grn = (state["grn.gamma"][0], state["grn.beta"][0])
        y = grn_mlp(y, fc1, grn, fc2, scope="batch", backend=backend)
        return x.map(lambda rows: rows + y.features)

    gradients = [golden["grads"][name] for name in names]
    assert_reproduced(op, golden, 2, dtype, list(golden["state"].values()), gradients)


@pytest.mark.parametrize(
    ("name", "depthwise"),
    [
        ("me_dwconv_k7_patch", True),
        ("me_dwconv_k3_irregular", True),
        ("me_subm3x3", False),
        ("me_down2x2", False),
    ],
)
def test_layout_is_the_recorded_one(name: str, depthwise: bool) -> None:
    golden = load(name)
    for kernel, weight in (("me_kernel", "weight"), ("me_grad_kernel", "grad_weight")):
        assert torch.equal(to_minkowski(golden[weight], depthwise=depthwise), golden[kernel])
        assert torch.equal(from_minkowski(golden[kernel], depthwise=depthwise), golden[weight])


@pytest.mark.parametrize(
    ("name", "tile"), [("me_dwconv_k7_patch", 4), ("me_dwconv_k3_irregular", 1), ("me_down2x2", 4)]
)
def test_rows_in_the_engines_order_are_put_into_ours(name: str, tile: int) -> None:
    golden = load(name)
    sites = sites_of(golden["mask"], tile)
    if "coords" in golden:
        features = in_our_order(golden["feats"], golden["coords"], sites)
        assert torch.equal(features, rows(golden["x"], sites))
    stride = golden.get("stride", 1)
    places = golden["out_coords"] // torch.tensor([1, stride, stride])
    out = in_our_order(golden["out_feats"], places, sites.downsample(stride))
    assert torch.equal(out, rows(golden["out"], sites.downsample(stride)))


@pytest.mark.filterwarnings("ignore:'locale.getdefaultlocale' is deprecated")
@pytest.mark.parametrize(
    ("name", "op", "tile"), [("me_subm3x3", subm_conv2d, 1), ("me_down2x2", downsample_conv2d, 4)]
)
def test_spconv_agrees_with_minkowski(name: str, op: Callable[..., SparseImage], tile: int) -> None:
    if reason := missing("spconv.pytorch", "pip install spconv"):
        pytest.skip(f"spconv: {reason[0]}")
    golden = load(name)
    x = SparseImage(rows(golden["x"], sites := sites_of(golden["mask"], tile)), sites)
    out = op(x, from_minkowski(golden["me_kernel"]), golden["bias"], backend="spconv")
    assert torch.allclose(out.features, rows(golden["out"], out.sites), rtol=0, atol=1e-12)
