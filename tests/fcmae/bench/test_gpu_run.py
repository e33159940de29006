"""The benchmark as a whole with arms and kernels that only pretend: budget, files, gates, tables, options."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcmae.bench.gpu import command
from fcmae.bench.gpu.arms import ArmError, ArmSpec, ProcessArm
from fcmae.bench.gpu.report import render, short_table
from fcmae.bench.gpu.run import STEP_OPS, Event, Plan, expected_seconds, run, survey_in_process
from fcmae.bench.gpu.steps import StepCase, StepSettings
from fcmae.errors import InputError

RATES = {"copy": 4.3e12, "matrix": 7.9e14, "vector": 5e13}
GPU = {
    "type": "cuda",
    "name": "NVIDIA H200",
    "commit": "c0ffee",
    "date": "2026-01-01 00:00 UTC",
    "driver": "580",
    "torch": "2.11",
}
KERNEL = {
    "op": "depthwise",
    "direction": "forward",
    "stage": 1,
    "rows": 311296,
    "channels": 128,
    "gb_per_second": 2656.0,
    "of_copy": 0.62,
    "of_floor": 0.9,
    "uncaptured": None,
}
PARITY = [{"op": op, "backend": "triton", "cases": 6, "failed": None} for op in STEP_OPS]
BASE, TINY, LARGE = (
    StepCase(backbone=f"convnextv2_{size}", mask_ratio=0.6, compiled=True, arms=("sparse", "masked_dense"))
    for size in ("base", "tiny", "large")
)
TINY_EAGER = StepCase(
    backbone="convnextv2_tiny", mask_ratio=0.9, compiled=False, arms=("sparse_scatter", "masked_dense")
)


class Clock:
    """Seconds that pass only where a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeArm:
    def __init__(self, spec: ArmSpec, clock: Clock, prepare: float) -> None:
        self.spec, self.clock, self.prepare = spec, clock, prepare

    def ready(self, until: float) -> dict[str, Any]:
        self.clock.now += self.prepare
        return {"loss": 1.0, "grad_norm": 1.0, "parameters": 10, "state_bytes": 0}

    def turn(self, steps: int, until: float) -> dict[str, Any]:
        return {"seconds": [0.02] * steps, "peak_bytes": 2**30}

    def close(self) -> None:
        pass


def go(
    tmp_path: Path,
    cases: tuple[StepCase, ...],
    *,
    events: tuple[Event, ...] | None = None,
    prepare: float = 50.0,
    budget: float = 500.0,
) -> tuple[dict[str, Any], Path, list[str], list[dict[str, Any]]]:
    """Run a plan; also the lines of the log, and what stood in the file at each of them."""
    clock, lines, files = Clock(), [], []
    if events is None:
        events = (("facts", GPU), ("rates", RATES), *(("parity", p) for p in PARITY))

    def say(line: str) -> None:
        lines.append(line)
        path = tmp_path / "nvidia-h200.json"
        files.append(json.loads(path.read_text()) if path.exists() else {})

    report, path = run(
        Plan(budget_seconds=budget, cases=cases, steps=StepSettings(rounds=2, steps=1)),
        tmp_path,
        start=lambda spec: FakeArm(spec, clock, prepare),
        surveying=lambda plan, until: iter(events),
        clock=clock,
        say=say,
    )
    return report, path, lines, files


def test_results_are_written_after_every_case(tmp_path: Path) -> None:
    report, path, lines, files = go(tmp_path, (BASE, TINY))
    assert path.name == "nvidia-h200.json" and json.loads(path.read_text()) == report
    assert [case["name"] for case in report["steps"]] == [BASE.name, TINY.name]
    assert len(files[-1]["steps"]) == 1 and len(lines) == len(PARITY) + 2
    assert report["seconds"] == 200 and report["skipped"] == []
    assert not list(tmp_path.glob("*.partial"))


def test_what_does_not_fit_is_skipped_and_named(tmp_path: Path) -> None:
    # Of 295 s base takes 100; large is guessed at 200 of the 195 left, tiny at 100, two eager arms at 30.
    report, _, lines, _ = go(tmp_path, (BASE, LARGE, TINY, TINY_EAGER), budget=300, prepare=50)
    assert [case["name"] for case in report["steps"]] == [BASE.name, TINY.name, TINY_EAGER.name]
    (skipped,) = report["skipped"]
    assert skipped["name"] == LARGE.name and skipped["arms"] == ["sparse", "masked_dense"]
    assert skipped["reason"] == "needs about 200 s of the 195 s left"
    assert any("skipped" in line for line in lines)
    assert f"skipped for want of time: {LARGE.name}" in short_table(report)


def test_what_a_kind_has_taken_replaces_the_guess(tmp_path: Path) -> None:
    other = StepCase(backbone=BASE.backbone, mask_ratio=0.9, compiled=True, arms=BASE.arms)
    # The guess for base is 150 s: after one that took 20, another fits into 60.
    report, *_ = go(tmp_path, (BASE, other), budget=185, prepare=10)
    assert len(report["steps"]) == 2
    report, *_ = go(tmp_path, (BASE, other), budget=185, prepare=80)
    assert [entry["name"] for entry in report["skipped"]] == [other.name]


def test_eager_arms_count_one_by_one() -> None:
    assert expected_seconds(TINY_EAGER, {}) == 30
    assert expected_seconds(TINY_EAGER, {TINY_EAGER.kind: 4.0}) == 8
    assert expected_seconds(TINY, {TINY_EAGER.kind: 4.0}) == 100


def test_an_engine_without_parity_is_not_timed(tmp_path: Path) -> None:
    wrong = {**PARITY[0], "failed": "tile 4: error 1"}
    events = (("facts", GPU), ("rates", RATES), *(("parity", p) for p in (wrong, *PARITY[1:])))
    report, *_ = go(tmp_path, (BASE, TINY_EAGER), events=events)
    base, eager = (case["arms"] for case in report["steps"])
    assert base["sparse"] == {"failed": "not timed: no parity for subm_conv2d depthwise"}
    assert "median_ms" in base["masked_dense"] and "median_ms" in eager["sparse_scatter"]
    assert report["steps"][0]["ratios"] == []


def test_a_survey_that_breaks_off_leaves_its_data_and_bars_the_engine(tmp_path: Path) -> None:
    events = (("facts", GPU), ("parity", PARITY[0]), ("failed", "its process ended with exit code -11"))
    report, _, lines, _ = go(tmp_path, (BASE,), events=events)
    assert report["kernels_stopped"] == "its process ended with exit code -11"
    assert report["parity"] == [PARITY[0]] and "kernels: stopped" in "".join(lines)
    arms = report["steps"][0]["arms"]
    assert "no parity for global_response_norm, grn_mlp" in arms["sparse"]["failed"]
    assert "median_ms" in arms["masked_dense"] and "floor_ms" not in arms["masked_dense"]


def test_nothing_is_known_of_a_device_that_says_nothing(tmp_path: Path) -> None:
    report, path, *_ = go(tmp_path, (), events=(("failed", "no CUDA device"),))
    assert path.name == "unnamed.json" and path.exists()
    assert "no CUDA device" in short_table(report)


def full_report(tmp_path: Path) -> dict[str, Any]:
    kernels = ({**KERNEL, "arm": "triton", "ms": 0.06}, {**KERNEL, "arm": "cudnn", "ms": 0.3})
    failed = {**KERNEL, "stage": 2, "arm": "triton", "failed": "out of resource"}
    events = (("facts", GPU), ("rates", RATES), *(("parity", p) for p in PARITY))
    events += tuple(("kernel", kernel) for kernel in (*kernels, failed))
    return go(tmp_path, (BASE, LARGE), events=events, budget=200)[0]


def test_results_become_markdown(tmp_path: Path) -> None:
    text = render(full_report(tmp_path))
    assert text.startswith("### NVIDIA H200\n") and "Commit c0ffee" in text and "copy 4.30 TB/s" in text
    assert "| base, 0.6 | compiled | 256 | sparse | 20.00 | 12800 | 1.0 |" in text
    row = next(line for line in text.splitlines() if "| triton |" in line)
    assert row == "| depthwise forward | 1 | 311296 x 128 | triton | 0.0600 | 2656 | 0.62 | 0.90 | 0.200 |"
    assert "Not measured in this run:" in text and "- convnextv2_large 0.6 compiled: skipped" in text
    assert "- depthwise forward, stage 2, triton: out of resource" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {12, 10}


def test_the_short_table_has_a_line_for_each_kernel_and_arm(tmp_path: Path) -> None:
    lines = short_table(full_report(tmp_path)).splitlines()
    (kernel,) = [line for line in lines if line.startswith("depthwise forward 1")]
    assert kernel.split() == ["depthwise", "forward", "1", "0.0600", "0.62", "0.3000", "0.62"]
    assert [line.split()[4] for line in lines if line.startswith("base, 0.6")] == ["sparse", "masked_dense"]


def test_launches_in_a_time_are_marked(tmp_path: Path) -> None:
    report = full_report(tmp_path)
    report["kernels"][0]["uncaptured"] = "not permitted"
    assert "0.0600*" in short_table(report) and "0.0600 (launches)" in render(report)


def test_figures_of_a_cpu_never_become_markdown(tmp_path: Path) -> None:
    report = full_report(tmp_path)
    report["device"] = {**GPU, "type": "cpu", "name": "CPU"}
    with pytest.raises(InputError, match="expected results of a GPU, got those of CPU"):
        render(report)
    assert "NOT A GPU" in short_table(report)


def test_a_survey_stops_at_its_time() -> None:
    events = list(survey_in_process(command.tiny_plan("cpu"), until=0.0))
    assert events == [("failed", "its time ended")]


def test_an_arm_whose_process_fails_says_why() -> None:
    settings = command.tiny_plan("cpu")
    assert settings.steps is not None
    from fcmae.bench.gpu.steps import arm_specs

    (spec,) = arm_specs(
        StepCase(backbone="convnextv2_nothing", mask_ratio=0.5, compiled=False, arms=("sparse",)),
        settings.steps,
        1,
    )
    arm = ProcessArm(spec)
    try:
        with pytest.raises(ArmError, match=r"sparse: InputError: backbone: .*convnextv2_nothing"):
            arm.ready(until=time.monotonic() + 120)
    finally:
        arm.close()


def options(*argv: str) -> Plan:
    return command.plan_of(command._parser().parse_args(argv))


def test_options_become_a_plan() -> None:
    plan = options("--out", "x", "--budget", "60", "--commit", "abc")
    assert (plan.budget_seconds, plan.commit, plan.sweep) == (60, "abc", False)
    assert plan.kernels is not None and plan.steps is not None and plan.steps.parallel
    assert options("--only", "kernels").steps is None and options("--only", "steps").kernels is None
    swept = options("--sweep", "--budget", "60")
    assert swept.sweep and swept.steps is None and swept.kernel_seconds == 60
    serial = options("--serial").steps
    assert serial is not None and not serial.parallel
    assert [c.name for c in options("--cases", "tiny 0.6", "base 0.6 eager").cases] == [
        "convnextv2_tiny 0.6 compiled",
        "convnextv2_base 0.6 eager",
        "convnextv2_tiny 0.6 eager",
    ]


def refusals() -> Iterator[tuple[list[str], str]]:
    yield [], "--out: expected a folder"
    yield ["--out", "x", "--budget", "0"], "--budget: expected seconds above 0, got 0"
    yield ["--out", "x", "--device", "cpu"], "--device: expected cuda, got cpu. Add --tiny"
    yield ["--out", "x", "--sweep", "--only", "steps"], "--sweep: expected kernels"
    yield ["--out", "x", "--tiny", "--device", "cpu", "--cases", "huge"], "--cases: expected part of a name"
    yield ["--budjet", "3"], "unrecognized arguments: --budjet"


@pytest.mark.parametrize(("argv", "message"), list(refusals()))
def test_wrong_options_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_render_prints_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(full_report(tmp_path / "run")))
    assert command.main(["--render", str(path)]) == 0
    assert capsys.readouterr().out.startswith("### NVIDIA H200\n")
