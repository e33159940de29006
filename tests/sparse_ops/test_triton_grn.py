"""GRN and the block's tail on the Triton backend: parity, and both ops as PyTorch citizens.

Without CUDA the kernels run in Triton's interpreter.
"""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from sparse_ops import ActiveSites, SparseImage, global_response_norm, grn_mlp
from sparse_ops.testing import (
    SITE_CASES,
    NoGradient,
    assert_parity,
    assert_within_budget,
    make_sites,
    outputs_and_gradients,
    random_inputs,
)

pytest.importorskip("triton", reason="triton: cannot be imported")

from sparse_ops.backends.triton_gpu import grn, grn_passes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCOPES = ("image", "batch")
MLP_NAMES = ("features", "weight1", "bias1", "gamma", "beta", "weight2", "bias2")

# torch 2.15's own opcheck reads .grad of tensors that are no leaves.
opcheck_warnings = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def sites_on_device(case: str) -> ActiveSites:
    sites = make_sites(case)
    visible = sites.active[:, :: sites.tile, :: sites.tile].to(DEVICE)
    return ActiveSites.from_patches(visible, tile=sites.tile)


def on_device(op):
    """The function of tensors, run on DEVICE for tensors of the CPU."""
    return lambda *tensors: op(*(t.to(DEVICE) for t in tensors)).cpu()


def grn_of(sites: ActiveSites, backend: str = "triton", scope="image"):
    return lambda f, g, b: (
        global_response_norm(SparseImage(f, sites), g, b, scope=scope, backend=backend).features
    )


def mlp_of(sites: ActiveSites, backend: str = "triton", scope="image"):
    return lambda f, w1, b1, g, b, w2, b2: (
        grn_mlp(SparseImage(f, sites), (w1, b1), (g, b), (w2, b2), scope=scope, backend=backend).features
    )


def mlp_shapes(rows: int, width: int = 8, hidden: int = 33) -> list[tuple[int, ...]]:
    return [(rows, width), (hidden, width), (hidden,), (hidden,), (hidden,), (width, hidden), (width,)]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grn_parity(dtype: torch.dtype, case: str, scope: str) -> None:
    sites = sites_on_device(case)
    assert_parity(
        "global_response_norm",
        lambda backend: on_device(grn_of(sites, backend, scope)),
        [(sites.num_sites, 7), (7,), (7,)],
        backend="triton",
        dtype=dtype,
        names=("features", "gamma", "beta"),
    )


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grn_mlp_parity(dtype: torch.dtype, case: str, scope: str) -> None:
    sites = sites_on_device(case)
    assert_parity(
        "grn_mlp",
        lambda backend: on_device(mlp_of(sites, backend, scope)),
        mlp_shapes(sites.num_sites),
        backend="triton",
        dtype=dtype,
        names=MLP_NAMES,
    )


def draw(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(DEVICE) for t in random_inputs(shapes, dtype=dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grn_mlp_parity_in_several_splits(dtype: torch.dtype) -> None:
    sites = sites_on_device("ragged")
    hidden = 256  # full rows: the launch that real widths take
    launch = grn_passes.default_launch(hidden)
    assert grn_passes.num_splits(sites.num_sites, sites.batch_size, hidden, launch) > 1
    assert_parity(
        "grn_mlp",
        lambda backend: on_device(mlp_of(sites, backend)),
        mlp_shapes(sites.num_sites, 8, hidden),
        backend="triton",
        dtype=dtype,
        names=MLP_NAMES,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    sites = sites_on_device("ragged")
    inputs = [t.to(DEVICE).detach().requires_grad_() for t in draw(*mlp_shapes(sites.num_sites), dtype=dtype)]
    first, second = (outputs_and_gradients(mlp_of(sites), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_references_results(build, inputs: list[Tensor]) -> list[Tensor]:
    """Assert outputs and gradients of `build(backend)` within the budget of one op; returns them."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    truths = outputs_and_gradients(build("reference"), exact)
    references = outputs_and_gradients(build("reference"), inputs)
    results = outputs_and_gradients(build("triton"), inputs)
    for index, (result, reference, truth) in enumerate(zip(results, references, truths, strict=True)):
        assert_within_budget(result, reference, truth, what=f"result {index} (output, then gradients)")
    return results


def test_activations_whose_squares_leave_float16() -> None:
    sites = sites_on_device("ragged")
    features, gamma, beta = draw((sites.num_sites, 8), (8,), (8,), dtype=torch.float16)
    assert_references_results(lambda backend: grn_of(sites, backend), [features * 1e3, gamma, beta])
    inputs = draw(*mlp_shapes(sites.num_sites), dtype=torch.float16)
    inputs[2] = inputs[2] * 100  # fc1's bias; much beyond that a gradient itself leaves float16
    assert_references_results(lambda backend: mlp_of(sites, backend), inputs)


def test_an_absent_channel_has_the_references_gradient() -> None:
    sites = sites_on_device("ragged")
    features, gamma, beta = draw((sites.num_sites, 4), (4,), (4,), dtype=torch.float32)
    features[:, 2] = 0
    assert_references_results(lambda backend: grn_of(sites, backend), [features, gamma, beta])


@pytest.mark.parametrize("rows", ["transposed", "sliced"])
def test_rows_and_gradients_that_are_not_contiguous(rows: str) -> None:
    sites = sites_on_device("random")
    wide = draw((sites.num_sites, 16), dtype=torch.float32)[0]
    features = wide[:, :8].t().contiguous().t() if rows == "transposed" else wide[:, ::2]
    gamma, beta = draw((8,), (8,), dtype=torch.float32)
    results = []
    for f in (features, features.contiguous()):
        leaf = f.detach().requires_grad_()
        out = grn_of(sites)(leaf, gamma, beta)
        step = torch.ones(1, device=DEVICE).expand(out.shape)  # strides of 0
        results.append((out, *torch.autograd.grad(out, leaf, step)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@opcheck_warnings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    ends = torch.tensor([0, 8, 12], device=DEVICE)
    x, gamma, beta, step = draw((12, 16), (16,), (16,), (12, 16), dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in (x, gamma, beta)]
    assert set(opcheck(grn._grn, (*leaves, ends, 1e-6)).values()) == {"SUCCESS"}
    norms = torch.rand(2, 16, device=DEVICE)
    results = opcheck(grn._grn_backward, (step, x, norms, gamma, beta, ends, 1e-6))
    assert set(results.values()) == {"SUCCESS"}
    tensors = [t.requires_grad_() for t in draw(*mlp_shapes(12, 4, 16), dtype=dtype)]
    assert set(opcheck(grn._grn_mlp, (*tensors, ends, 1e-6)).values()) == {"SUCCESS"}
    pre, step = draw((12, 16), (12, 4), dtype=dtype)
    x, weight1, _, gamma, beta, weight2, _ = (t.detach() for t in tensors)
    saved = (step, x, pre, norms, weight1, gamma, beta, weight2, ends, 1e-6)
    assert set(opcheck(grn._grn_mlp_backward, saved).values()) == {"SUCCESS"}


def test_compiles_without_a_graph_break() -> None:
    sites = sites_on_device("ragged")
    inputs = [t.requires_grad_() for t in draw(*mlp_shapes(sites.num_sites), dtype=torch.float32)]

    def tail(f, w1, b1, gamma, beta, w2, b2):
        hidden = mlp_of(sites)(f, w1, b1, gamma, beta, w2, b2)
        return grn_of(sites)(hidden, gamma[:8], beta[:8])

    eager = outputs_and_gradients(tail, inputs)
    graph = outputs_and_gradients(torch.compile(tail, fullgraph=True, backend="aot_eager"), inputs)
    assert all(torch.equal(a, b) for a, b in zip(eager, graph, strict=True))


def test_checkpointing_and_autocast_change_nothing() -> None:
    sites = sites_on_device("ragged")
    inputs = [t.requires_grad_() for t in draw(*mlp_shapes(sites.num_sites), dtype=torch.float32)]
    expected = torch.autograd.grad(mlp_of(sites)(*inputs).sum(), inputs)
    out = checkpoint(mlp_of(sites), *inputs, use_reentrant=False)
    with torch.autocast(DEVICE, torch.bfloat16):  # around backward() alone
        actual = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("backend", ["scatter", "triton"])
def test_an_undefined_gradient_is_handed_on(backend: str) -> None:
    sites = sites_on_device("random")
    grn_inputs, mlp_inputs = (
        [t.requires_grad_() for t in draw(*shapes, dtype=torch.float32)]
        for shapes in ([(sites.num_sites, 7), (7,), (7,)], mlp_shapes(sites.num_sites))
    )
    for op, inputs in ((grn_of, grn_inputs), (mlp_of, mlp_inputs)):
        out = op(sites, backend)(*inputs)
        gradients = torch.autograd.grad(NoGradient.apply(out).sum(), inputs, allow_unused=True)
        assert gradients == (None,) * len(inputs)


def test_parameters_may_be_wider_than_the_features() -> None:
    sites = sites_on_device("ragged")
    (features,) = draw((sites.num_sites, 8), dtype=torch.bfloat16)
    inputs = [features, *draw((8,), (8,), dtype=torch.float32)]
    results = assert_references_results(lambda backend: grn_of(sites, backend), inputs)
    assert [t.dtype for t in results] == [torch.bfloat16] * 2 + [torch.float32] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("stage", range(4))
def test_real_sizes_in_bfloat16(stage: int) -> None:
    # A quarter of the batch of 256 images of ConvNeXt V2-Base at mask ratio 0.6.
    images, width = 64, 128 * 2**stage
    ids = torch.rand(images, 49, device=DEVICE).argsort(1)[:, :19].sort(1).values
    sites = ActiveSites.from_visible_ids(ids, grid=(7, 7), tile=8 // 2**stage)
    inputs = draw(*mlp_shapes(sites.num_sites, width, 4 * width), dtype=torch.bfloat16)
    inputs[1], inputs[5] = inputs[1] / width**0.5, inputs[5] / (4 * width) ** 0.5
    first, second = (assert_references_results(lambda name: mlp_of(sites, name), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "two runs differ"


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_captured_step_waits_for_nothing_and_replays() -> None:
    ids = torch.rand(8, 49, device=DEVICE).argsort(1)[:, :19].sort(1).values
    inputs = [t.requires_grad_() for t in draw(*mlp_shapes(8 * 19 * 4, 64, 256), dtype=torch.bfloat16)]

    def step() -> list[Tensor]:
        sites = ActiveSites.from_visible_ids(ids, grid=(7, 7), tile=2)
        out = mlp_of(sites)(*inputs)
        # Detached: nodes of a step outside the graph, kept alive, would draw its stream into the capture.
        return [out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    expected = step()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
