"""spconv itself against the reference: outputs, gradients, the order of its rows, and what it cannot do."""

from unittest import mock

import pytest
import torch
from torch.func import functional_call

from sparse_ops import BackendUnavailableError, SparseImage, downsample_conv2d, functional, subm_conv2d
from sparse_ops.backends import spconv_adapter
from sparse_ops.backends.spconv_adapter import from_spconv, to_spconv
from sparse_ops.foreign import missing
from sparse_ops.testing import assert_parity, assert_within_budget, make_sites, random_inputs

# ccimport, on which spconv builds, calls what Python 3.15 removes; it says so once, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:'locale.getdefaultlocale' is deprecated")

CASES = ("random", "empty_image", "border", "ragged", "non_square", "odd_tile", "irregular")


@pytest.fixture
def _spconv() -> None:
    if reason := missing("spconv.pytorch", "pip install spconv"):
        pytest.skip(f"spconv: {reason[0]}")


@pytest.fixture
def _backward(_spconv: None):
    """What the backward needs on a CPU: a stream, which it does not use there, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        mock.patch("spconv.pytorch.ops.get_current_stream", return_value=0),
        mock.patch.object(spconv_adapter, "wants_gradient", return_value=False),
    ):
        yield
    torch.set_num_threads(threads)


def subm(sites, backend: str):
    return lambda f, w, b: subm_conv2d(SparseImage(f, sites), w, b, backend=backend).features


def down(sites, backend: str):
    return lambda f, w, b: downsample_conv2d(SparseImage(f, sites), w, b, backend=backend).features


OPS = {"subm_conv2d": subm, "downsample_conv2d": down}


@pytest.mark.usefixtures("_spconv")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("op", "kernel"), [("subm_conv2d", 3), ("subm_conv2d", 7), ("downsample_conv2d", 2)])
def test_forward(op: str, kernel: int, case: str, dtype: torch.dtype) -> None:
    sites = make_sites(case)
    if case == "irregular" and op == "downsample_conv2d":
        sites = make_sites("ragged", tile=8).downsample(4)
    shapes = [(sites.num_sites, 5), (6, 5, kernel, kernel), (6,)]
    inputs = [t.detach() for t in random_inputs(shapes, dtype=dtype)]
    truth = OPS[op](sites, "reference")(*(t.double() for t in inputs))
    reference = OPS[op](sites, "reference")(*inputs)
    engine = functional.engine("spconv")
    with mock.patch.object(engine, op, wraps=getattr(engine, op)) as spy:
        out = OPS[op](sites, "spconv")(*inputs)
        again = OPS[op](sites, "spconv")(*inputs)  # with the index pairs of the first
    assert spy.call_count == 2 and torch.equal(out, again)
    assert_within_budget(out, reference, truth)


@pytest.mark.usefixtures("_backward")
@pytest.mark.parametrize("case", ["random", "ragged", "irregular"])
@pytest.mark.parametrize(("op", "kernel"), [("subm_conv2d", 3), ("downsample_conv2d", 3)])
def test_gradients(op: str, kernel: int, case: str) -> None:
    sites = make_sites(case, tile=6) if case != "irregular" else make_sites("ragged", tile=6).downsample(2)
    assert_parity(
        op,
        lambda backend: OPS[op](sites, backend),
        [(sites.num_sites, 5), (6, 5, kernel, kernel), (6,)],
        backend="spconv",
        dtype=torch.float32,
        names=("features", "weight", "bias"),
    )


@pytest.mark.usefixtures("_backward")
def test_sites_used_in_inference_can_be_trained_on() -> None:
    sites = make_sites("random")
    features, weight = random_inputs([(sites.num_sites, 4), (4, 4, 3, 3)], dtype=torch.float32)
    for kernel in (5, 3):  # with pairs kept already, and without
        subm_conv2d(SparseImage(features, sites), torch.ones(4, 4, kernel, kernel), backend="spconv")
        with torch.inference_mode():
            subm_conv2d(SparseImage(features, sites), weight, backend="spconv")
        out = subm_conv2d(SparseImage(features, sites), weight, backend="spconv")
        assert torch.autograd.grad(out.features.sum(), weight)[0].any()


@pytest.mark.usefixtures("_spconv")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 1, 3, 3), "groups": 4}, "no depthwise convolution; use groups=1"),
        ({"weight": torch.zeros(4, 4, 1, 1)}, "channels of a 1 x 1 kernel; use sparse_ops.linear"),
        ({"dtype": torch.bfloat16}, "takes float32, float64 on cpu only"),
        ({"case": "no_rows"}, "no empty input"),
    ],
)
def test_refusals_are_named(change: dict, message: str) -> None:
    call = {"weight": torch.zeros(4, 4, 3, 3), "groups": 1, "dtype": torch.float32, "case": "random"} | change
    sites = make_sites(call["case"])
    x = SparseImage(torch.zeros(sites.num_sites, 4, dtype=call["dtype"]), sites)
    with pytest.raises(BackendUnavailableError, match=message):
        subm_conv2d(x, call["weight"].to(call["dtype"]), groups=call["groups"], backend="spconv")


@pytest.mark.usefixtures("_spconv")
def test_threads_do_not_add_rows_up_wrongly() -> None:
    # Left to two threads, 99 of 100 such calls are wrong by more than 1e-9.
    sites = make_sites("odd_tile")
    features, weight = random_inputs([(sites.num_sites, 5), (6, 5, 7, 7)], dtype=torch.float64)
    seen = []

    def call(*arguments):
        seen.append(torch.get_num_threads())
        return functional_call(*arguments)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad(), mock.patch.object(spconv_adapter, "functional_call", call):
            expected = subm(sites, "reference")(features, weight, None)
            for _ in range(20):
                out = subm(sites, "spconv")(features, weight, None)
                assert torch.allclose(out, expected, rtol=0, atol=1e-9)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("_spconv")
def test_a_gradient_on_a_cpu_is_refused_before_the_forward() -> None:
    sites = make_sites("random")
    x = SparseImage(torch.ones(sites.num_sites, 4), sites)
    weight = torch.ones(4, 4, 3, 3, requires_grad=True)
    with pytest.raises(BackendUnavailableError, match=r"CUDA stream.*torch.no_grad"):
        subm_conv2d(x, weight, backend="spconv")
    with torch.no_grad():
        subm_conv2d(x, weight, backend="spconv")


@pytest.mark.usefixtures("_spconv")
def test_what_is_refused_is_still_broken() -> None:
    """A release that mends one of these fails here, and its refusal can go."""
    import spconv.pytorch as spconv

    x = torch.eye(2)
    image = spconv.SparseConvTensor(x, torch.tensor([[0, 0, 0], [0, 0, 1]]).int(), [1, 2], 1)
    one = spconv.SubMConv2d(2, 2, 1, bias=False)
    one.weight.data = torch.tensor([[1.0, 2], [3, 4]])[:, None, None]
    assert torch.equal(one(image).features, x @ one.weight.data.view(2, 2))  # F.linear: x @ weight.T
    with pytest.raises(AssertionError, match="groups"):
        spconv.SubMConv2d(4, 4, 3, groups=4)


def test_layout_is_its_own_inverse() -> None:
    weight = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    kernel = to_spconv(weight)
    assert kernel[1, 4, 2, 0] == weight[1, 0, 4, 2]
    assert torch.equal(from_spconv(kernel), weight)


def test_a_missing_engine_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spconv.pytorch", None)
    sites = make_sites("random")
    with pytest.raises(
        BackendUnavailableError, match=r"spconv: import of spconv.pytorch halted.*pip install"
    ):
        subm_conv2d(
            SparseImage(torch.ones(sites.num_sites, 4), sites), torch.ones(4, 4, 3, 3), backend="spconv"
        )
