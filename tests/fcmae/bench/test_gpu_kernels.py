"""Kernel times at tiny sizes on a CPU: what is called and counted, and that a wrong kernel is not timed."""

from types import ModuleType

import pytest
import torch

from fcmae.bench.floors import Rates, Work
from fcmae.bench.gpu import passes
from fcmae.bench.gpu.kernels import (
    BASE_STAGES,
    KernelCase,
    KernelSettings,
    figures,
    measure_kernel,
    planned_kernels,
    work_of,
)
from fcmae.bench.gpu.parity import OPS, check_op, parity_cases
from fcmae.bench.gpu.passes import measure_passes
from fcmae.bench.gpu.timing import MAX_SETS, Timing, count_sets, device_facts, measure_rates, slug, time_calls
from sparse_ops import Backend
from sparse_ops.functional import engine

CPU = torch.device("cpu")
RATES = Rates(copy=1e9, matrix=1e12, vector=1e10)
STAGES = ((2, 8), (1, 16))
TINY = KernelSettings(device="cpu", batch_size=2, grid=(3, 3), stages=STAGES, repeats=2, engine="scatter")


def test_calls_rotate_over_the_input_sets() -> None:
    order: list[int] = []
    timing = time_calls(lambda index: lambda: order.append(index), 3, CPU, repeats=4)
    assert order == [0, 1, 2] * 5  # once to warm up
    assert len(timing.seconds) == 4 and timing.sets == 3 and timing.uncaptured == "not a CUDA device"
    assert timing.median >= 0


def test_sets_exceed_twice_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_sets(10, CPU) == 2
    monkeypatch.setattr("fcmae.bench.gpu.timing.cache_bytes", lambda device: 60)
    assert count_sets(100, CPU) == 2 and count_sets(50, CPU) == 3 and count_sets(7, CPU) * 7 > 120
    assert count_sets(0, CPU) == MAX_SETS


def test_figures_by_hand() -> None:
    timing = Timing(seconds=(0.004, 0.002, 0.009), sets=2, uncaptured=None)
    got = figures(timing, Work(name="w", moved=2_000_000, vector=30_000_000), RATES)
    assert got["ms"] == 4 and got["ms_range"] == [2, 9]
    assert got["gb_per_second"] == pytest.approx(0.5) and got["of_copy"] == pytest.approx(0.5)
    assert got["floor_ms"] == pytest.approx(3) and got["of_floor"] == pytest.approx(0.75)


def test_rates_and_facts_of_a_cpu() -> None:
    rates = measure_rates(CPU, copy_bytes=2**12, gemm=16)
    assert min(rates.copy, rates.matrix, rates.vector) > 0
    facts = device_facts(CPU, "abc")
    assert facts["type"] == "cpu" and facts["commit"] == "abc" and facts["torch"] == torch.__version__
    assert slug("NVIDIA H200 (NVL)") == "nvidia-h200-nvl"


@pytest.mark.parametrize(
    "case", [case for part in planned_kernels(TINY) for case in part if case.arm != "compiled"]
)
def test_every_planned_case_runs(case: KernelCase) -> None:
    result = measure_kernel(case, TINY, RATES)
    if case.arm in (Backend.SPCONV, Backend.WARPCONVNET):  # where installed; spconv has no bfloat16 on a CPU
        return
    assert "failed" not in result, result
    tile, channels = STAGES[case.stage - 1]
    kept = 9 if case.arm == "cudnn" else 3
    assert (result["rows"], result["channels"]) == (2 * kept * tile**2, channels)
    assert result["ms"] > 0 and result["of_copy"] > 0


def test_the_plan_names_the_cases_of_each_arm() -> None:
    first, last = planned_kernels(KernelSettings())
    assert first[0] == KernelCase(op="depthwise", direction="forward", stage=1, arm="triton")
    for direction in ("forward", "dgrad", "wgrad"):
        for stage in range(1, 5):
            arms = {c.arm for c in first if (c.op, c.direction, c.stage) == ("depthwise", direction, stage)}
            assert arms == {"triton", "cudnn", "scatter"}
    assert {case.arm for case in first if case.op == "grn_mlp"} == {"triton", "composed", "scatter"}
    assert [case.arm for case in last if case.op == "grn_mlp"] == ["compiled"] * 4
    assert not [case for case in planned_kernels(TINY)[0] if case.arm == "triton"]


def test_grn_counts_the_hidden_features() -> None:
    case = KernelCase(op="grn", direction="forward", stage=1, arm="scatter")
    assert work_of(case, 10, 4, 2).moved == 3 * 10 * 16 * 2


def test_a_direction_computes_what_it_says_and_no_more() -> None:
    from fcmae.bench.gpu.kernels import _dense_call, _sparse_call, make_stage_sites

    settings = KernelSettings(
        device="cpu", batch_size=2, grid=(3, 3), stages=STAGES, dtype=torch.float64, engine="scatter"
    )
    for direction in ("forward", "dgrad", "wgrad"):
        torch.manual_seed(0)
        case = KernelCase(op="depthwise", direction=direction, stage=1, arm="scatter")
        sparse = _sparse_call(case, settings)(0)()
        dense = _dense_call(case, settings)(0)()
        sites = make_stage_sites(1, settings)
        if direction == "forward":
            assert sparse.shape == (sites.num_sites, 8) and dense.shape == (2, 8, 6, 6)  # type: ignore[attr-defined]
        elif direction == "dgrad":
            assert [t.shape for t in sparse] == [(sites.num_sites, 8)]  # type: ignore[attr-defined]
            assert dense[0].shape == (2, 8, 6, 6) and dense[1] is None  # type: ignore[index]
        else:
            assert [t.shape for t in sparse] == [(8, 1, 7, 7), (8,)]  # type: ignore[attr-defined]
            assert dense[0] is None and dense[1].shape == (8, 1, 7, 7)  # type: ignore[index]


@pytest.mark.parametrize("op", OPS)
def test_a_right_engine_passes_parity_at_every_stage(op: str) -> None:
    result = check_op(op, "scatter", CPU, parity_cases(STAGES), torch.bfloat16)
    assert result == {"op": op, "backend": "scatter", "cases": 4, "failed": None}


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_engine_fails_parity(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: ModuleType = engine("scatter")
    name = op.partition(" ")[0]
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: right(*arguments) * 1.05)
    result = check_op(op, "scatter", CPU, parity_cases(STAGES), torch.bfloat16)
    assert result["cases"] == 0 and "random sites, tile 2, 8 channels" in result["failed"]


def test_a_kernel_that_cannot_launch_fails_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments) -> None:
        raise RuntimeError("out of resource:\nshared memory")

    monkeypatch.setattr(engine("scatter"), "grn_mlp", broken)
    result = check_op("grn_mlp", "scatter", CPU, parity_cases(STAGES), torch.bfloat16)
    assert "RuntimeError: out of resource: shared memory" in result["failed"]


def test_parity_covers_the_kernels_that_are_timed() -> None:
    cases = parity_cases(BASE_STAGES)
    assert {(tile, width) for case, tile, width in cases if case == "random"} == set(BASE_STAGES)
    assert {case for case, _, _ in cases} == {"random", "ragged", "irregular"}


def test_passes_run_in_the_interpreter_and_wrong_ones_are_not_timed() -> None:
    settings = KernelSettings(device="cpu", batch_size=1, grid=(2, 2), stages=((1, 8),), repeats=1)
    failed = {"subm_conv2d depthwise": "why"}
    results = list(measure_passes(settings, RATES, failed, sweep=False))
    convolution = [r for r in results if r["op"].startswith("conv")]
    assert len(convolution) == 2 and all("parity failed: why" in r["failed"] for r in convolution)
    others = [r for r in results if not r["op"].startswith("conv")]
    assert len(others) == 6 and all(r["ms"] > 0 for r in others), others
    moved = {r["op"]: r["gb_per_second"] * r["ms"] * 1e6 for r in others}
    # One visible patch of a row: 32 hidden features of two bytes a pass.
    assert moved["grn sums"] == pytest.approx(64) and moved["grn backward apply"] == pytest.approx(4 * 64)


def test_a_sweep_tries_every_configuration() -> None:
    from sparse_ops.backends.triton_gpu import grn_passes

    settings = KernelSettings(device="cpu", batch_size=1, grid=(2, 2), stages=((1, 8),), repeats=1)
    failed = {"subm_conv2d depthwise": "why"}
    results = list(measure_passes(settings, RATES, failed, sweep=True))
    swept = [r["config"] for r in results if r["op"] == "grn sums"]
    assert len(swept) == len(grn_passes.LAUNCHES) == len({str(config) for config in swept})
    rows = [r["config"] for r in results if r["op"] == "conv rows"]
    assert len(rows) > len(passes.SWEPT_WARPS) and all(config["num_warps"] for config in rows)
