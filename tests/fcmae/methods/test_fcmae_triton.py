"""A whole FCMAE step on the Triton backend: the scatter backend's numbers, one graph, no wait."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

import fcmae
from sparse_ops.backends import triton_gpu

pytest.importorskip("triton", reason="triton: cannot be imported")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 10), "decoder_dim": 8, "image_size": 64}


def small_method(backend: str) -> torch.nn.Module:
    torch.manual_seed(0)
    method = fcmae.create_method("fcmae", backbone="convnextv2_atto", backend=backend, **SMALL)
    # GRN begins as the identity: give it something to do.
    for name, parameter in method.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter)
    return method.to(DEVICE)


def step(method: torch.nn.Module, images: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    """The loss and the gradients of all parameters."""
    loss = method(images, visible_ids=ids).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(method.parameters()))]


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Of a network's results in float32, as far as another order of summation goes."""
    for a, e in zip(actual, expected, strict=True):
        assert torch.allclose(a, e, rtol=1e-3, atol=1e-4 * max(1.0, e.abs().max().item()))


@pytest.fixture
def batch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield torch.randn(2, 3, 64, 64, device=DEVICE), torch.tensor([[0, 3], [1, 2]], device=DEVICE)


def test_step_is_the_scatter_backends(batch) -> None:
    expected = step(small_method("scatter"), *batch)
    method = small_method("triton")
    ops = ("subm_conv2d", "downsample_conv2d", "grn_mlp")
    spies = [mock.patch.object(triton_gpu, op, wraps=getattr(triton_gpu, op)) for op in ops]
    with spies[0] as conv, spies[1] as down, spies[2] as tail:
        actual = step(method, *batch)
    assert (conv.call_count, down.call_count, tail.call_count) == (4, 3, 4)
    assert_close(actual, expected)


@pytest.mark.slow
def test_step_compiles_as_one_graph(batch) -> None:
    method = small_method("triton")
    method.compile(fullgraph=True, backend="aot_eager")
    assert_close(step(method, *batch), step(small_method("scatter"), *batch))


def test_forward_waits_for_no_device() -> None:
    # Fake tensors hold no values: whatever asks for one, as a wait for the device does, raises. The backward
    # is traced with such tensors where the step is compiled; on a fake GPU autograd finds no device.
    method = small_method("triton")
    with FakeTensorMode():
        parameters = {name: torch.empty(p.shape, device="cuda") for name, p in method.named_parameters()}
        images = torch.randn(2, 3, 64, 64, device="cuda")
        ids = torch.zeros(2, 2, dtype=torch.int64, device="cuda")
        loss = torch.func.functional_call(method, parameters, images, {"visible_ids": ids}).loss
        assert loss.device.type == "cuda"
        visible = torch.ones(2, 2, 2, dtype=torch.bool, device="cuda")
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            torch.func.functional_call(method, parameters, images, {"visible": visible})


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_captured_step_replays(batch) -> None:
    method = small_method("triton")
    expected = step(method, *batch)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(method, *batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(method, *batch)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
