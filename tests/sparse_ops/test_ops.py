"""The ops as PyTorch citizens: opcheck, compile, autocast, dense inputs, backends and error messages."""

import logging

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparse_ops import (
    BackendUnavailableError,
    DownsampleConv2d,
    GlobalResponseNorm,
    MaskedImage,
    SparseImage,
    SubmConv2d,
    dispatch,
    downsample_conv2d,
    functional,
    global_response_norm,
    grn_mlp,
    linear,
    subm_conv2d,
)
from sparse_ops.backends import scatter
from sparse_ops.backends.scatter import conv as scatter_conv
from sparse_ops.backends.scatter.grn_mlp import _grn_mlp, _grn_mlp_backward
from sparse_ops.image import _gather_rows, gather_rows
from sparse_ops.testing import make_sites

# torch 2.15's own opcheck reads .grad of tensors that are no leaves.
opcheck_warnings = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def depthwise_inputs(tile: int = 4, channels: int = 8):
    sites = make_sites("random", tile=tile)
    features = torch.randn(sites.num_sites, channels, requires_grad=True)
    weight = torch.randn(channels, 1, 7, 7, requires_grad=True)
    return sites, features, weight, torch.randn(channels, requires_grad=True)


@opcheck_warnings
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("tile", [4, 2])
def test_opcheck_convolution(tile: int, groups: int) -> None:
    sites, features, weight, bias = depthwise_inputs(tile)
    weight = weight.expand(8, 8 // groups, 7, 7).contiguous().detach().requires_grad_()
    if tile == 4:
        index = (sites.halo_rows(3), sites.order)
        forward, backward = scatter_conv._tile_conv, scatter_conv._tile_conv_backward
    else:
        index = (sites.site_of_row, [sites.batch_size, sites.height, sites.width])
        forward, backward = scatter_conv._grid_conv, scatter_conv._grid_conv_backward
    assert set(opcheck(forward, (features, weight, bias, *index, groups)).values()) == {"SUCCESS"}
    gradient = torch.randn_like(features)
    detached = (gradient, features.detach(), weight.detach())
    for wanted in ((True, True), (False, True), (True, False)):
        assert set(opcheck(backward, (*detached, *index, groups, *wanted)).values()) == {"SUCCESS"}


@opcheck_warnings
def test_opcheck_grn_mlp() -> None:
    shapes = ((12, 4), (16, 4), (16,), (16,), (16,), (4, 16), (4,))
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    assert set(opcheck(_grn_mlp, (*tensors, 4, 1e-6)).values()) == {"SUCCESS"}
    x, weight1, _, gamma, beta, weight2, _ = (t.detach() for t in tensors)
    pre, norms = torch.randn(12, 16), torch.rand(3, 16)
    saved = (torch.randn(12, 4), x, pre, norms, weight1, gamma, weight2, beta)
    assert set(opcheck(_grn_mlp_backward, (*saved, 4, 1e-6)).values()) == {"SUCCESS"}


@opcheck_warnings
def test_opcheck_gather_rows() -> None:
    table = torch.randn(6, 3, requires_grad=True)
    results = opcheck(_gather_rows, (table, torch.tensor([4, 0, 2])))
    assert set(results.values()) == {"SUCCESS"}
    assert torch.equal(gather_rows(table, torch.tensor([4, 0])), table[[4, 0]])


@pytest.mark.parametrize("tile", [4, 2])
def test_compiles_without_a_graph_break(tile: int) -> None:
    sites, features, weight, bias = depthwise_inputs(tile)

    def block(f, w, b):
        x = subm_conv2d(SparseImage(f, sites), w, b, groups=8)
        x = global_response_norm(x, b, b)
        return downsample_conv2d(x, w[:, :, :2, :2].expand(8, 8, 2, 2), b).features

    expected = block(features, weight, bias)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(features, weight, bias)
    assert torch.allclose(compiled, expected, rtol=1e-5, atol=1e-5)
    for eager, graph in zip(
        torch.autograd.grad(expected.sum(), (features, weight, bias)),
        torch.autograd.grad(compiled.sum(), (features, weight, bias)),
        strict=True,
    ):
        assert torch.allclose(eager, graph, rtol=1e-4, atol=1e-4)


def test_autocast_computes_in_its_dtype_and_returns_float32_gradients() -> None:
    sites, features, weight, bias = depthwise_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = subm_conv2d(SparseImage(features, sites), weight, bias, groups=8).features
        fc = [torch.randn(s, requires_grad=True) for s in ((16, 8), (16,), (16,), (16,), (8, 16), (8,))]
        mlp = grn_mlp(SparseImage(features, sites), *zip(fc[::2], fc[1::2], strict=True)).features
    assert out.dtype == mlp.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().sum() + mlp.float().sum(), (features, weight, *fc))
    assert {g.dtype for g in gradients} == {torch.float32}


@pytest.mark.parametrize("groups", [1, 8])
def test_masked_and_sparse_agree_at_the_active_sites(groups: int) -> None:
    sites = make_sites("ragged")
    dense = torch.randn(2, 12, 12, 8)
    weight = torch.randn(8, 8 // groups, 5, 5)
    expected = subm_conv2d(SparseImage.from_dense(dense, sites), weight, groups=groups).densify()
    out = subm_conv2d(MaskedImage(dense, sites), weight, groups=groups).features
    active = sites.active
    assert torch.allclose(out[active], expected[active], atol=1e-5)
    gamma, beta = torch.randn(2, 8)
    expected = global_response_norm(SparseImage.from_dense(dense, sites), gamma, beta).densify()
    out = global_response_norm(MaskedImage(dense, sites), gamma, beta).features
    assert torch.allclose(out[active], expected[active], atol=1e-5)


def test_modules_run_a_dense_tensor_with_the_same_parameters() -> None:
    conv, down, norm = SubmConv2d(8, 8, 3, groups=8), DownsampleConv2d(8, 4, 2), GlobalResponseNorm(8)
    torch.nn.init.normal_(norm.weight)
    dense = torch.randn(2, 12, 12, 8)
    sites = make_sites("all_visible")
    for module in (conv, down, norm):
        sparse = module(SparseImage.from_dense(dense, sites)).densify()
        assert torch.allclose(module(dense), sparse, atol=1e-5)
    plain = F.conv2d(dense.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=8)
    assert torch.equal(conv(dense), plain.permute(0, 2, 3, 1))
    reloaded = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
    reloaded.load_state_dict(conv.state_dict())


def test_auto_says_once_what_it_chose(caplog) -> None:
    sites, features, weight, _ = depthwise_inputs()
    dispatch._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="sparse_ops"):
        for _ in range(2):
            subm_conv2d(SparseImage(features, sites), weight, groups=8)
    assert [r.getMessage() for r in caplog.records] == ["subm_conv2d on cpu runs on backend 'scatter'"]


def test_a_named_backend_that_cannot_run_raises_with_its_reasons(monkeypatch) -> None:
    sites, features, weight, _ = depthwise_inputs()
    monkeypatch.setattr(scatter, "reasons", lambda call: ["it is broken today"])
    with pytest.raises(BackendUnavailableError, match=r"(?s)\[192, 8\] float32.*scatter: it is broken today"):
        subm_conv2d(SparseImage(features, sites), weight, groups=8, backend="scatter")
    watched = functional.engine("reference")
    with_auto = subm_conv2d(SparseImage(features, sites), weight, groups=8).features
    assert torch.equal(with_auto, watched.subm_conv2d(features, weight, None, sites, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(8, 1, 4, 4)}, "kernel's side odd, got 4"),
        ({"weight": torch.zeros(8, 2, 3, 3)}, r"weight.shape\[1\] 1, got 2"),
        ({"weight": torch.zeros(8, 1, 3, 3).double()}, "weight of features's dtype"),
        ({"bias": torch.zeros(7)}, r"bias \[8\], got \[7\]"),
        ({"groups": 2}, r"groups 1 or 8"),
        ({"backend": "cuda"}, "backend one of auto, triton, scatter, reference, .*, got 'cuda'"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    sites, features, _, _ = depthwise_inputs()
    call = {"weight": torch.zeros(8, 1, 3, 3), "bias": torch.zeros(8), "groups": 8, **change}
    with pytest.raises(ValueError, match=message):
        subm_conv2d(SparseImage(features, sites), call.pop("weight"), **call)


@pytest.mark.parametrize("tile", [4, 2])
def test_saved_tensors_are_unpacked_once(tile: int) -> None:
    sites, features, weight, bias = depthwise_inputs(tile)

    def conv(f, w, b):
        return subm_conv2d(SparseImage(f, sites), w, b, groups=8).features

    expected = torch.autograd.grad(conv(features, weight, bias).sum(), (features, weight, bias))
    out = checkpoint(conv, features, weight, bias, use_reentrant=False)
    actual = torch.autograd.grad(out.sum(), (features, weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_sites_used_in_inference_can_be_trained_on() -> None:
    for tile in (4, 2):
        sites, features, weight, bias = depthwise_inputs(tile)
        with torch.inference_mode():
            subm_conv2d(SparseImage(features, sites), weight, bias, groups=8)
        subm_conv2d(SparseImage(features, sites), weight, bias, groups=8).features.sum().backward()
        assert features.grad is not None and bool(features.grad.isfinite().all())


def test_autocast_around_backward_changes_no_gradient() -> None:
    sites, features, weight, bias = depthwise_inputs()
    gradients = []
    for enabled in (False, True):
        out = subm_conv2d(SparseImage(features, sites), weight, bias, groups=8).features
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients.append(torch.autograd.grad(out.sum(), (features, weight)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_depthwise_weights_gradient_has_its_strides() -> None:
    # DDP copies and warns of others; strides of sides of length 1 count.
    sites, features, weight, bias = depthwise_inputs()
    sparse = SparseImage(features, sites)
    for x in (sparse, sparse.densify()):
        out = subm_conv2d(x, weight, bias, groups=8)
        out = out.features if isinstance(out, SparseImage) else out
        (grad,) = torch.autograd.grad(out.sum(), (weight,))
        assert grad.stride() == weight.stride()


def test_autocast_leaves_float64_alone() -> None:
    sites, features, weight, bias = depthwise_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = subm_conv2d(SparseImage(features.double(), sites), weight.double(), bias.double(), groups=8)
    assert out.features.dtype == torch.float64


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 5, 12), (0, 12)])
def test_linear_is_torchs(shape: tuple[int, ...]) -> None:
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in (shape, (6, 12), (6,)))
    expected, actual = F.linear(x, weight, bias), linear(x, weight, bias)
    assert torch.allclose(actual, expected, atol=1e-5) and actual.shape == expected.shape
    for a, b in zip(
        torch.autograd.grad(actual.square().sum(), (x, weight, bias)),
        torch.autograd.grad(expected.square().sum(), (x, weight, bias)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-4)
