"""The GPU benchmark from its first reading to its files: what runs, in what order, and until when."""

import importlib.util
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fcmae.bench.floors import Rates
from fcmae.bench.gpu.arms import Arm, ArmSpec, ProcessArm
from fcmae.bench.gpu.kernels import (
    OTHER_ENGINES,
    PARITY_OF,
    KernelCase,
    KernelSettings,
    measure_kernel,
    planned_kernels,
)
from fcmae.bench.gpu.parity import OPS, check_op, parity_cases
from fcmae.bench.gpu.passes import measure_passes
from fcmae.bench.gpu.steps import ARMS, StepCase, StepSettings, measure_case, planned_cases, without
from fcmae.bench.gpu.timing import device_facts, measure_rates, slug
from sparse_ops import Backend

COMPILED_SECONDS = {"convnextv2_tiny": 100.0, "convnextv2_base": 150.0, "convnextv2_large": 200.0}
"""Guess of what a compiled case takes, its arms side by side."""

EAGER_SECONDS = 15.0
"""Guess of what each arm of an eager case takes, one after another."""

STEP_OPS = ("subm_conv2d depthwise", "global_response_norm", "grn_mlp")
"""Ops that a sparse step runs on the engine under test."""

CLOSING_SECONDS = 5.0
"""Kept for the last file and the table."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run of the benchmark.

    Attributes:
        budget_seconds: When it ends, whatever is left.
        kernel_seconds: When the part of the kernels ends.
        kernels, steps: Sizes of the two parts; None leaves a part out.
        cases: Comparisons of whole steps, in order of importance.
        commit: Of the source tree, where git does not know.
        rates: Sizes for `measure_rates`.
        sweep: Whether the kernels are instead tried in every configuration.
        device: "cuda", or "cpu" to try the benchmark itself.
    """

    budget_seconds: float = 525.0
    kernel_seconds: float = 180.0
    kernels: KernelSettings | None = field(default_factory=KernelSettings)
    steps: StepSettings | None = field(default_factory=StepSettings)
    cases: tuple[StepCase, ...] = field(default_factory=lambda: tuple(planned_cases()))
    commit: str | None = None
    rates: dict[str, int] = field(default_factory=dict)
    sweep: bool = False
    device: str = "cuda"


Event = tuple[str, Any]
"""What the process of the kernels reports: its kind ("facts", "rates", "parity", "kernel") and the value."""


def survey(plan: Plan) -> Iterator[Event]:
    """Facts, rates, parity and kernel times, each as soon as it is known."""
    device = torch.device(plan.device)
    # The reference must not be rounded to tf32, or the error budget that it sets would pass anything.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    yield "facts", device_facts(device, plan.commit)
    rates = measure_rates(device, **plan.rates)
    yield "rates", asdict(rates)
    kernels = plan.kernels or KernelSettings(device=plan.device)
    failed: dict[tuple[str, str], str] = {}
    # The other engines have no depthwise convolution and no GRN.
    others = [("subm_conv2d regular", name) for name in OTHER_ENGINES if importlib.util.find_spec(name)]
    for op, engine in [*((op, kernels.engine) for op in OPS), *others]:
        result = check_op(op, engine, device, parity_cases(kernels.stages), kernels.dtype)
        if result["failed"]:
            failed[op, engine] = result["failed"]
        yield "parity", result
    if plan.kernels is None:
        return
    own = {op: reason for (op, engine), reason in failed.items() if engine == kernels.engine}
    first, last = ([], []) if plan.sweep else planned_kernels(kernels)
    yield from _kernels(first, kernels, rates, failed)
    if kernels.engine == Backend.TRITON:
        for record in measure_passes(kernels, rates, own, sweep=plan.sweep):
            yield "kernel", record
    yield from _kernels(last, kernels, rates, failed)


def _kernels(
    cases: list[KernelCase], settings: KernelSettings, rates: Rates, failed: dict[tuple[str, str], str]
) -> Iterator[Event]:
    for case in cases:
        depends = (PARITY_OF[case.op], settings.engine if case.arm == "composed" else case.arm)
        if depends in failed:
            yield "kernel", {**asdict(case), "failed": f"not timed: parity failed: {failed[depends]}"}
        else:
            yield "kernel", measure_kernel(case, settings, rates)


def serve_survey(connection: Connection, plan: Plan) -> None:
    """The process's side of `survey`."""
    try:
        for event in survey(plan):
            connection.send(event)
        connection.send(("end", None))
    except Exception as error:
        traceback.print_exc()
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def survey_in_process(plan: Plan, until: float) -> Iterator[Event]:
    """`survey` in a process of its own, which a wrong kernel may end; stops at `until`."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=serve_survey, args=(theirs, plan))
    process.start()
    theirs.close()
    try:
        while True:
            if not connection.poll(max(0.0, until - time.monotonic())):
                yield "failed", "its time ended"
                return
            event = connection.recv()
            if event[0] == "end":
                return
            yield event
    except EOFError:
        process.join(5)
        yield "failed", f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join(10)
        connection.close()


def print_now(line: str) -> None:
    """Print a line that shows even if the run is killed."""
    print(line, flush=True)


def run(
    plan: Plan,
    out: Path,
    *,
    start: Callable[[ArmSpec], Arm] = ProcessArm,
    surveying: Callable[[Plan, float], Iterator[Event]] = survey_in_process,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print_now,
) -> tuple[dict[str, Any], Path]:
    """Run a plan and write its results after every case.

    Args:
        plan: What to measure.
        out: Folder of the results.
        start: Starts an arm.
        surveying: Yields the events of `survey`, until a time.
        clock: In seconds; what the budget is counted in.
        say: Takes the lines of the log.
    Returns:
        The results, and the file that they stand in.
    """
    began = clock()
    until = began + plan.budget_seconds - CLOSING_SECONDS
    report: dict[str, Any] = {"device": {"type": plan.device}, "rates": None, "parity": []}
    report |= {"kernels": [], "kernels_stopped": None, "steps": [], "skipped": []}
    report["settings"] = asdict(plan.steps) if plan.steps else None
    path = out / "unnamed.json"

    def save() -> None:
        report["seconds"] = clock() - began
        write_json(report, path)

    for kind, value in surveying(plan, min(until, began + plan.kernel_seconds)):
        if kind == "facts":
            report["device"] = value
            path = out / f"{slug(value['name'])}.json"
        elif kind == "rates":
            report["rates"] = value
        elif kind == "failed":
            report["kernels_stopped"] = value
            say(f"kernels: stopped, {value}")
        else:
            report[{"parity": "parity", "kernel": "kernels"}[kind]].append(value)
            if kind == "parity":
                say(f"parity: {value['op']} on {value['backend']}: {value['failed'] or 'passed'}")
        save()
    if plan.steps is not None:
        run_cases(plan.steps, plan.cases, report, until=until, start=start, clock=clock, say=say, save=save)
    save()
    return report, path


def run_cases(
    settings: StepSettings,
    cases: tuple[StepCase, ...],
    report: dict[str, Any],
    *,
    until: float,
    start: Callable[[ArmSpec], Arm],
    clock: Callable[[], float],
    say: Callable[[str], None],
    save: Callable[[], None],
) -> None:
    """Measure the cases that fit into the time, in their order; the others are named in report["skipped"]."""
    rates = Rates(**report["rates"]) if report["rates"] else None
    wrong = unproven(report)
    taken: dict[tuple[str, bool], float] = {}
    for case in cases:
        need, left = expected_seconds(case, taken), until - clock()
        if need > left:
            reason = f"needs about {need:.0f} s of the {max(0.0, left):.0f} s left"
            report["skipped"].append({"name": case.name, "arms": list(case.arms), "reason": reason})
            say(f"{case.name}: skipped, {reason}")
            save()
            continue
        barred = tuple(name for name in case.arms if wrong and ARMS[name][:2] == ("sparse", "auto"))
        began = clock()
        result = measure_case(without(case, barred), settings, start=start, until=until, rates=rates)
        for name in barred:
            result["arms"][name] = {"failed": f"not timed: no parity for {wrong}"}
        result["seconds"] = clock() - began
        taken[case.kind] = result["seconds"] / (1 if case.compiled else len(case.arms))
        report["steps"].append(result)
        say(f"{case.name}: {result['seconds']:.0f} s, batch {result['batch_size']}, {_summary(result)}")
        save()


def expected_seconds(case: StepCase, taken: dict[tuple[str, bool], float]) -> float:
    """What a case should take: `taken` holds cases of its kind, eager ones by the arm; else a guess."""
    if case.compiled:
        return taken.get(case.kind, COMPILED_SECONDS.get(case.backbone, max(COMPILED_SECONDS.values())))
    return taken.get(case.kind, EAGER_SECONDS) * len(case.arms)


def unproven(report: dict[str, Any]) -> str | None:
    """Which ops of a step have not passed parity on the engine that "auto" takes; None if all have."""
    passed = {result["op"] for result in report["parity"] if result["failed"] is None}
    return ", ".join(op for op in STEP_OPS if op not in passed) or None


def _summary(result: dict[str, Any]) -> str:
    parts = []
    for name, figures in result["arms"].items():
        parts.append(
            f"{name} {figures['failed']}" if "failed" in figures else f"{name} {figures['median_ms']:.1f} ms"
        )
    return ", ".join(parts)


def write_json(report: dict[str, Any], path: Path) -> None:
    """Replace the file at once, so that a run that is killed leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, path)
