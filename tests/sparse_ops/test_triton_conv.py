"""The Triton convolution against the reference: parity, and its ops as PyTorch citizens.

Without CUDA the kernels run in Triton's interpreter.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from sparse_ops import ActiveSites, BackendUnavailableError, SparseImage, downsample_conv2d, subm_conv2d
from sparse_ops.testing import SITE_CASES, assert_parity, make_sites, outputs_and_gradients, random_inputs

pytest.importorskip("triton", reason="triton: cannot be imported")

from sparse_ops.backends import scatter, triton_gpu
from sparse_ops.backends.triton_gpu import conv, conv_launch, gather

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("features", "weight", "bias")

# torch 2.15's own opcheck reads .grad of tensors that are no leaves.
opcheck_warnings = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def sites_on_device(case: str, tile: int = 4) -> ActiveSites:
    sites = make_sites(case, tile=tile)
    visible = sites.active[:, :: sites.tile, :: sites.tile].to(DEVICE)
    return ActiveSites.from_patches(visible, tile=sites.tile)


def conv_of(sites: ActiveSites, groups: int, backend: str = "triton"):
    """The convolution on DEVICE as a function of tensors of the CPU."""

    def run(*tensors):
        features, *parameters = (tensor.to(DEVICE) for tensor in tensors)
        x = SparseImage(features, sites)
        return subm_conv2d(x, *parameters, groups=groups, backend=backend).features.cpu()

    return run


def shapes_of(sites: ActiveSites, channels: int, kernel: int, groups: int) -> list[tuple[int, ...]]:
    return [(sites.num_sites, channels), (channels, channels // groups, kernel, kernel), (channels,)]


def assert_conv_parity(sites: ActiveSites, channels: int, kernel: int, groups: int, **options) -> None:
    options = {"dtype": torch.float32, **options}
    shapes = shapes_of(sites, channels, kernel, groups)
    build = lambda backend: conv_of(sites, groups, backend)  # noqa: E731
    assert_parity("subm_conv2d", build, shapes, names=NAMES, backend="triton", **options)


@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize(
    ("tile", "kernel", "dtype"), [(4, 7, torch.float32), (2, 5, torch.bfloat16), (1, 3, torch.float16)]
)
def test_depthwise(tile: int, kernel: int, dtype: torch.dtype, case: str) -> None:
    assert_conv_parity(sites_on_device(case, tile), 5, kernel, 5, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tile", [4, 2, 1])
def test_depthwise_7x7(dtype: torch.dtype, tile: int) -> None:
    assert_conv_parity(sites_on_device("ragged", tile), 5, 7, 5, dtype=dtype)


@pytest.mark.parametrize("tile", [8, 6, 4, 3, 2, 1])
@pytest.mark.parametrize("kernel", [3, 7])
def test_depthwise_is_exact_on_integers(tile: int, kernel: int) -> None:
    assert_conv_parity(sites_on_device("one_patch", tile), 3, kernel, 3, integers=True)


@pytest.mark.parametrize(
    ("case", "kernel", "dtype"),
    [
        ("one_patch", 11, torch.float32),
        ("random", 1, torch.float32),
        ("ragged", 9, torch.bfloat16),
        ("no_rows", 9, torch.float32),
    ],
)
def test_depthwise_of_kernels_that_are_not_unrolled(case: str, kernel: int, dtype: torch.dtype) -> None:
    assert_conv_parity(sites_on_device(case, 2), 5, kernel, 5, dtype=dtype)


@pytest.mark.parametrize("channels", [2, 16, 80, 130])
def test_depthwise_of_any_width(channels: int) -> None:
    assert_conv_parity(sites_on_device("one_patch", 2), channels, 3, channels, integers=True)


@settings(max_examples=8, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=6, max_size=6),
    tile=st.sampled_from([1, 2, 3, 4]),
    channels=st.sampled_from([2, 3, 17]),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_any_mask_tile_width_and_kernel(mask: list[bool], tile: int, channels: int, kernel: int) -> None:
    sites = ActiveSites.from_patches(torch.tensor(mask, device=DEVICE).view(2, 1, 3), tile=tile)
    assert_conv_parity(sites, channels, kernel, channels, integers=True)


@pytest.mark.parametrize("kernel", [3, 9])
def test_weight_gradient_of_several_programs_and_steps(kernel: int, monkeypatch) -> None:
    monkeypatch.setattr(conv_launch, "WGRAD_PROGRAMS", 2)
    monkeypatch.setattr(conv_launch, "WGRAD_STEPS", 1)
    assert_conv_parity(sites_on_device("irregular"), 5, kernel, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["random", "ragged", "irregular", "no_rows"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_regular(dtype: torch.dtype, case: str, kernel: int) -> None:
    assert_conv_parity(sites_on_device(case), 5, kernel, 1, dtype=dtype)


def test_regular_in_several_chunks(monkeypatch) -> None:
    # 50 rows of 3 x 3 x 5 float32 at a time, of 192.
    monkeypatch.setattr(gather, "CHUNK_BYTES", 50 * 9 * 5 * 4)
    assert_conv_parity(sites_on_device("random"), 5, 3, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["ragged", "odd_tile", "no_rows"])
def test_downsample(dtype: torch.dtype, case: str) -> None:
    sites, factor = sites_on_device(case), 3 if case == "odd_tile" else 2

    def build(backend: str):
        def run(*tensors):
            features, *parameters = (tensor.to(DEVICE) for tensor in tensors)
            x = SparseImage(features, sites)
            return downsample_conv2d(x, *parameters, backend=backend).features.cpu()

        return run

    shapes = [(sites.num_sites, 6), (5, 6, factor, factor), (5,)]
    assert_parity("downsample_conv2d", build, shapes, backend="triton", dtype=dtype, names=NAMES)


def test_two_runs_give_the_same_bits() -> None:
    sites = sites_on_device("random")
    inputs = random_inputs(shapes_of(sites, 5, 3, 5), dtype=torch.bfloat16)
    first, second = (outputs_and_gradients(conv_of(sites, 5), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("rows", ["transposed", "sliced"])
def test_rows_that_are_not_contiguous(rows: str) -> None:
    sites = sites_on_device("ragged", 2)
    if rows == "transposed":
        features = torch.randn(6, sites.num_sites).t()
    else:
        features = torch.randn(sites.num_sites, 12)[:, ::2]
    inputs = [features.requires_grad_(), torch.randn(6, 1, 3, 3, requires_grad=True)]
    expected = outputs_and_gradients(
        conv_of(sites, 6), [features.detach().contiguous().requires_grad_(), inputs[1]]
    )
    actual = outputs_and_gradients(conv_of(sites, 6), inputs)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@opcheck_warnings
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 6])
def test_opcheck(groups: int, bias: bool) -> None:
    sites = sites_on_device("random", 2)
    inputs = random_inputs(shapes_of(sites, 6, 3, groups), dtype=torch.float32)
    features, weight, shift = (t.detach().to(DEVICE).requires_grad_() for t in inputs)
    index = (sites.site_of_row, sites.row_of_site)
    if groups == 1:
        forward, backward = gather.gather_conv, gather._gather_conv_backward
    else:
        forward, backward = conv._depthwise, conv._depthwise_backward
        index = (*index, 2)
    results = opcheck(forward, (features, weight, shift if bias else None, *index))
    assert set(results.values()) == {"SUCCESS"}
    saved = (torch.randn_like(features), features.detach(), weight.detach(), *index)
    for wanted in ((True, True), (False, True), (True, False)):
        assert set(opcheck(backward, (*saved, *wanted)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("groups", [1, 6])
def test_compiles_without_a_graph_break(groups: int) -> None:
    sites = sites_on_device("random", 2)
    inputs = random_inputs(shapes_of(sites, 6, 3, groups), dtype=torch.float32)
    op = conv_of(sites, groups)
    eager = outputs_and_gradients(op, inputs)
    graph = outputs_and_gradients(torch.compile(op, fullgraph=True, backend="aot_eager"), inputs)
    assert all(torch.equal(a, b) for a, b in zip(eager, graph, strict=True))


@pytest.mark.parametrize("groups", [1, 6])
def test_checkpointing_and_autocast_around_backward_change_nothing(groups: int) -> None:
    sites = sites_on_device("random", 2)
    inputs = random_inputs(shapes_of(sites, 6, 3, groups), dtype=torch.float32)
    expected = torch.autograd.grad(conv_of(sites, groups)(*inputs).sum(), inputs)
    out = checkpoint(conv_of(sites, groups), *inputs, use_reentrant=False)
    with torch.autocast(DEVICE, torch.bfloat16):
        actual = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_autocast_computes_in_its_dtype_and_returns_float32_gradients() -> None:
    sites = sites_on_device("random", 2)
    inputs = random_inputs(shapes_of(sites, 6, 3, 6), dtype=torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = conv_of(sites, 6)(*inputs)
    gradients = torch.autograd.grad(out.float().sum(), inputs)
    assert out.dtype is torch.bfloat16 and {g.dtype for g in gradients} == {torch.float32}


def depthwise(
    dtype: torch.dtype = torch.float32, device: str = "cpu", backend: str = "triton"
) -> torch.Tensor:
    sites = make_sites("random")
    features = torch.ones(sites.num_sites, 4, dtype=dtype, device=device)
    weight = torch.ones(4, 1, 3, 3, dtype=dtype, device=device)
    return subm_conv2d(SparseImage(features, sites), weight, groups=4, backend=backend).features


def test_float64_is_refused_but_for_the_gemm() -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"triton: .*features are float64; its kernels take float32"
    ):
        depthwise(torch.float64)


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(triton_gpu, "_INTERPRETED", False)
    with pytest.raises(
        BackendUnavailableError, match=r"triton: features are on cpu, not cuda .*TRITON_INTERPRET=1"
    ):
        depthwise()


def test_a_missing_triton_is_named_with_its_remedy(monkeypatch) -> None:
    monkeypatch.setattr(triton_gpu, "_INSTALLED", False)
    with pytest.raises(
        BackendUnavailableError, match=r"triton: triton cannot be imported \(pip install triton\)"
    ):
        depthwise()


def test_auto_never_takes_the_interpreter(monkeypatch) -> None:
    monkeypatch.setattr(triton_gpu, "_INTERPRETED", True)
    monkeypatch.setattr(triton_gpu, "subm_conv2d", None)
    assert torch.equal(depthwise(backend="auto"), depthwise(backend="scatter"))


@pytest.mark.gpu
def test_auto_takes_the_kernels_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(scatter, "subm_conv2d", None)
    sites = sites_on_device("random")
    inputs = random_inputs(shapes_of(sites, 4, 3, 4), dtype=torch.float32)
    assert torch.equal(conv_of(sites, 4, "auto")(*inputs), conv_of(sites, 4)(*inputs))


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "tile"), [(128, 8), (96, 8), (256, 4), (512, 2), (1024, 1)])
def test_real_sizes_in_bfloat16(channels: int, tile: int) -> None:
    ids = torch.rand(4, 49, device=DEVICE).argsort(1)[:, :19].sort(1).values
    sites = ActiveSites.from_visible_ids(ids, grid=(7, 7), tile=tile)
    assert_conv_parity(sites, channels, 7, channels, dtype=torch.bfloat16)
    inputs = random_inputs(shapes_of(sites, channels, 7, channels), dtype=torch.bfloat16)
    first, second = (outputs_and_gradients(conv_of(sites, channels), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "two runs differ"


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("groups", [1, 64])
def test_a_captured_step_waits_for_nothing_and_replays(groups: int) -> None:
    ids = torch.rand(8, 49, device=DEVICE).argsort(1)[:, :19].sort(1).values
    shapes = [(8 * 19 * 16, 64), (64, 64 // groups, 7, 7), (64,)]
    inputs = [t.detach().to(DEVICE).requires_grad_() for t in random_inputs(shapes, dtype=torch.bfloat16)]

    def step() -> list[torch.Tensor]:
        sites = ActiveSites.from_visible_ids(ids, grid=(7, 7), tile=4)
        features, *parameters = inputs
        out = subm_conv2d(SparseImage(features, sites), *parameters, groups=groups, backend="triton").features
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
