"""Every backend against the reference: outputs, every gradient, and that it is what ran."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops import ActiveSites, SparseImage, downsample_conv2d, global_response_norm, grn_mlp, subm_conv2d
from sparse_ops.testing import SITE_CASES, assert_parity, make_sites

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
BACKENDS = ("scatter",)


def assert_conv_parity(sites, channels: int, kernel: int, groups: int, **options) -> None:
    def build(backend: str):
        return lambda f, w, b: (
            subm_conv2d(SparseImage(f, sites), w, b, groups=groups, backend=backend).features
        )

    shapes = [(sites.num_sites, channels), (channels, channels // groups, kernel, kernel), (channels,)]
    assert_parity("subm_conv2d", build, shapes, names=("features", "weight", "bias"), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("tile", [4, 2])
def test_depthwise(backend: str, dtype: torch.dtype, case: str, tile: int) -> None:
    assert_conv_parity(make_sites(case, tile=tile), 24, 7, 24, backend=backend, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["random", "ragged", "irregular", "no_rows"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_regular(backend: str, dtype: torch.dtype, case: str, kernel: int) -> None:
    assert_conv_parity(make_sites(case), 5, kernel, 1, backend=backend, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", [8, 4, 2, 1])
@pytest.mark.parametrize("kernel", [3, 7])
def test_depthwise_is_exact_on_integers(backend: str, dtype: torch.dtype, tile: int, kernel: int) -> None:
    # One patch of few sites: every sum stays below 256, where bfloat16 still counts by ones.
    case = "one_patch" if dtype is torch.bfloat16 else "ragged"
    if dtype is torch.bfloat16 and tile > 4:
        pytest.skip("sums over 64 sites leave the integers that bfloat16 holds")
    sites = make_sites(case, tile=tile)
    assert_conv_parity(sites, 16, kernel, 16, backend=backend, dtype=dtype, integers=True)


@settings(max_examples=25, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=12, max_size=12),
    tile=st.sampled_from([1, 2, 3, 4, 5, 8]),
    channels=st.sampled_from([1, 3, 17]),
    kernel=st.sampled_from([3, 5, 7, 9]),
)
def test_any_mask_tile_width_and_kernel(mask: list[bool], tile: int, channels: int, kernel: int) -> None:
    sites = ActiveSites.from_patches(torch.tensor(mask).view(2, 2, 3), tile=tile)
    assert_conv_parity(sites, channels, kernel, channels, backend="scatter", dtype=torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("factor", [2, 4])
def test_downsample(backend: str, dtype: torch.dtype, case: str, factor: int) -> None:
    sites = make_sites(case, tile=8) if case != "irregular" else make_sites("ragged", tile=8).downsample(8)
    if case in ("irregular", "odd_tile"):
        factor = 3

    def build(name: str):
        return lambda f, w, b: downsample_conv2d(SparseImage(f, sites), w, b, backend=name).features

    shapes = [(sites.num_sites, 6), (5, 6, factor, factor), (5,)]
    names = ("features", "weight", "bias")
    assert_parity("downsample_conv2d", build, shapes, backend=backend, dtype=dtype, names=names)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_grn(backend: str, dtype: torch.dtype, case: str, scope) -> None:
    sites = make_sites(case)

    def build(name: str):
        return lambda f, g, b: (
            global_response_norm(SparseImage(f, sites), g, b, scope=scope, backend=name).features
        )

    shapes = [(sites.num_sites, 6), (6,), (6,)]
    names = ("features", "gamma", "beta")
    assert_parity("global_response_norm", build, shapes, backend=backend, dtype=dtype, names=names)


MLP_NAMES = ("features", "weight1", "bias1", "gamma", "beta", "weight2", "bias2")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_grn_mlp(backend: str, dtype: torch.dtype, case: str, scope) -> None:
    sites = make_sites(case)

    def build(name: str):
        return lambda f, w1, b1, g, b, w2, b2: (
            grn_mlp(SparseImage(f, sites), (w1, b1), (g, b), (w2, b2), scope=scope, backend=name).features
        )

    shapes = [(sites.num_sites, 8), (32, 8), (32,), (32,), (32,), (6, 32), (6,)]
    assert_parity("grn_mlp", build, shapes, backend=backend, dtype=dtype, names=MLP_NAMES)


def test_grn_mlp_in_several_chunks(monkeypatch) -> None:
    module = importlib.import_module("sparse_ops.backends.scatter.grn_mlp")
    # Two images of 64 rows x 32 hidden float32 a chunk, three images: the last chunk is a partial one.
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 64 * 32 * 4)
    test_grn_mlp("scatter", torch.float32, "random", "image")


def test_depthwise_weight_gradient_in_several_chunks(monkeypatch) -> None:
    # Two tiles of 24 channels at a time, of twelve.
    monkeypatch.setattr(importlib.import_module("sparse_ops.backends.scatter.conv"), "WGRAD_CHANNELS", 48)
    assert_conv_parity(make_sites("random"), 24, 7, 24, backend="scatter", dtype=torch.float32)


@pytest.mark.parametrize("rows", ["transposed", "sliced"])
def test_rows_that_are_not_contiguous(rows: str) -> None:
    sites = make_sites("random")
    if rows == "transposed":
        features = torch.randn(12, sites.num_sites).t()
    else:
        features = torch.randn(sites.num_sites, 24)[:, ::2]
    weight = torch.randn(12, 1, 7, 7)
    expected = subm_conv2d(SparseImage(features.contiguous(), sites), weight, groups=12).features
    assert torch.equal(subm_conv2d(SparseImage(features, sites), weight, groups=12).features, expected)


def test_a_dead_channel_has_a_finite_gradient() -> None:
    sites = make_sites("ragged")
    features = torch.randn(sites.num_sites, 4)
    features[:, 2] = 0
    features.requires_grad_()
    out = global_response_norm(SparseImage(features, sites), torch.ones(4), torch.zeros(4)).features
    (gradient,) = torch.autograd.grad(out.sum(), features)
    assert bool(torch.isfinite(gradient).all())
