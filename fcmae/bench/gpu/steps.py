"""Whole pretraining steps, arm against arm: which comparisons, in what order, and how one is measured."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from fcmae.bench.arms import StepSpec
from fcmae.bench.floors import Rates, step_floor_seconds, step_works
from fcmae.bench.gpu.arms import Arm, ArmError, ArmSpec, OutOfMemoryError, TimeEndedError
from fcmae.masking import count_visible

MAE_MASK_RATIO = 0.75
PATCH_SIZE = 32

TURNS_SECONDS = 15.0
"""Kept for the turns of those arms that were ready in time."""

LOSS_PARITY = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative difference of the losses of equal arms above which none is timed, as in `fcmae bench step`."""

NORM_PARITY = {"fp32": 1e-3, "bf16": 5e-2}
"""The same of the norm over all gradients: a wrong dgrad or wgrad changes it and leaves the loss alone."""

ARMS = {
    "sparse": ("sparse", "auto", False),
    "sparse_scatter": ("sparse", "scatter", False),
    "sparse_graph": ("sparse", "auto", True),
    "masked_dense": ("masked_dense", "auto", False),
    "direct": ("direct", "auto", False),
    "mae": ("mae", "auto", False),
}
"""Name of an arm -> execution, engine, CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """One comparison.

    Attributes:
        backbone: Name of the encoder.
        mask_ratio: Of every arm but MAE, which keeps its own.
        compiled: Whether the arms go through torch.compile.
        arms: Names of `ARMS`.
    """

    backbone: str
    mask_ratio: float
    compiled: bool
    arms: tuple[str, ...]

    @property
    def name(self) -> str:
        """For the log and the command line."""
        return f"{self.backbone} {self.mask_ratio:g} {'compiled' if self.compiled else 'eager'}"

    @property
    def kind(self) -> tuple[str, bool]:
        """Cases of one kind take about as long to prepare."""
        return self.backbone, self.compiled


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What the cases share: sizes, rounds, and the device."""

    device: str = "cuda"
    batch_size: int = 256
    image_size: int = 224
    precision: str = "bf16"
    rounds: int = 5
    steps: int = 5
    threads: int = 4
    parallel: bool = True
    """Arms of a compiled case start, and so compile, at the same time; they are timed one after another."""


def planned_cases() -> list[StepCase]:
    """The comparisons in order of importance."""
    tiny, base, large = (f"convnextv2_{size}" for size in ("tiny", "base", "large"))
    pair, three = ("sparse", "masked_dense"), ("sparse", "masked_dense", "sparse_scatter")
    first = [
        # MAE stands beside Base here: their ratio needs no second compilation of Base.
        (base, 0.6, True, (*three, "mae")),
        (tiny, 0.6, True, three),
        (base, 0.75, True, pair),
        (base, 0.6, False, (*three, "sparse_graph", "direct", "mae")),
        (large, 0.6, True, pair),
        (tiny, 0.6, False, (*three, "sparse_graph")),
        (large, 0.6, False, three),
    ]
    ratios = (0.75, 0.9, 0.4, 0.0)
    # Eager ones first: nothing is compiled, so many of them fit.
    rest = [
        (backbone, ratio, compiled, pair)
        for compiled in (False, True)
        for ratio in ratios
        for backbone in (base, tiny, large)
        if (backbone, ratio, compiled) != (base, 0.75, True)
    ]
    return [
        StepCase(backbone=backbone, mask_ratio=ratio, compiled=compiled, arms=arms)
        for backbone, ratio, compiled, arms in [*first, *rest]
    ]


def arm_specs(case: StepCase, settings: StepSettings, batch_size: int) -> list[ArmSpec]:
    """The arms of a case as their processes take them."""
    specs = []
    for name in case.arms:
        execution, backend, graph = ARMS[name]
        step = StepSpec(
            arm=execution,
            backbone="vit_base_patch16" if name == "mae" else case.backbone,
            batch_size=batch_size,
            image_size=settings.image_size,
            mask_ratio=MAE_MASK_RATIO if name == "mae" else case.mask_ratio,
            precision=settings.precision,
            backend=backend,
            device=settings.device,
            compile=case.compiled,
            threads=settings.threads,
        )
        specs.append(ArmSpec(name=name, step=step, graph=graph))
    return specs


def measure_case(
    case: StepCase,
    settings: StepSettings,
    *,
    start: Callable[[ArmSpec], Arm],
    until: float,
    rates: Rates | None,
) -> dict[str, Any]:
    """Time the arms of a case at the largest batch that every one of them can hold.

    Args:
        case: What to compare.
        settings: Sizes and rounds.
        start: Starts an arm.
        until: Time of `time.monotonic()` at which waiting ends.
        rates: Of the device, for the floors; None: no floors.
    Returns:
        The case's fields, "batch_size", "arms" (name -> figures, or "failed" with the reason) and "ratios".
    """
    batch_size, parallel = settings.batch_size, settings.parallel and case.compiled
    fields = {"name": case.name, "backbone": case.backbone, "mask_ratio": case.mask_ratio}
    fields |= {"compiled": case.compiled, "precision": settings.precision, "image_size": settings.image_size}
    out_of_memory: list[str] = []
    while batch_size:
        try:
            specs = arm_specs(case, settings, batch_size)
            arms = _measure_arms(specs, settings, parallel=parallel, start=start, until=until)
        except OutOfMemoryError as error:
            if parallel:  # it may be the others' memory
                parallel = False
            else:
                out_of_memory.append(f"{error} at batch {batch_size}")
                batch_size //= 2
            continue
        for name, figures in arms.items():
            if "failed" not in figures:
                _add_derived(name, figures, case, settings, batch_size, rates)
        return {
            **fields,
            "batch_size": batch_size,
            "out_of_memory": out_of_memory,
            "arms": arms,
            "ratios": ratios_of(arms),
        }
    failed = {name: {"failed": "out of memory at batch 1"} for name in case.arms}
    return {**fields, "batch_size": 0, "out_of_memory": out_of_memory, "arms": failed, "ratios": []}


def _measure_arms(
    specs: list[ArmSpec],
    settings: StepSettings,
    *,
    parallel: bool,
    start: Callable[[ArmSpec], Arm],
    until: float,
) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        running: list[Arm] = []

        def launch(spec: ArmSpec) -> Arm:
            arm = start(spec)
            stack.callback(arm.close)
            return arm

        def ask(arm: Arm, question: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
            try:
                return question()
            except (ArmError, TimeEndedError) as error:
                results[arm.spec.name] = {"failed": str(error)}
                arm.close()
                return None

        launched = [launch(spec) for spec in specs] if parallel else map(launch, specs)
        for arm in launched:
            facts = ask(arm, lambda arm=arm: arm.ready(until - TURNS_SECONDS))
            if facts is not None:
                results[arm.spec.name] = {**facts, "turns": []}
                running.append(arm)
        for name, reason in disagreements(results, settings.precision).items():
            results[name] = {"failed": reason}
        running = [arm for arm in running if "failed" not in results[arm.spec.name]]
        for _ in range(settings.rounds):
            for arm in list(running):
                timed = ask(arm, lambda arm=arm: arm.turn(settings.steps, until))
                if timed is None:
                    running.remove(arm)
                else:
                    results[arm.spec.name]["turns"].append(timed)
    return {spec.name: results[spec.name] for spec in specs}


def disagreements(arms: dict[str, dict[str, Any]], precision: str) -> dict[str, str]:
    """Why arms that should compute the same do not: name -> reason, for all of them if any two differ."""
    same = {name: facts for name, facts in arms.items() if name != "mae" and "failed" not in facts}
    for what, tolerance in (("loss", LOSS_PARITY[precision]), ("grad_norm", NORM_PARITY[precision])):
        values = {name: facts[what] for name, facts in same.items()}
        anchor = values.get("masked_dense", next(iter(values.values()), 0.0))
        if not all(abs(value - anchor) <= tolerance * abs(anchor) for value in values.values()):
            listed = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
            return dict.fromkeys(same, f"not timed: {what} of equal arms differs: {listed}")
    return {}


def _add_derived(
    name: str,
    figures: dict[str, Any],
    case: StepCase,
    settings: StepSettings,
    batch_size: int,
    rates: Rates | None,
) -> None:
    seconds = [value for turn in figures["turns"] for value in turn["seconds"]]
    median = statistics.median(seconds)
    figures["median_ms"], figures["min_ms"] = median * 1e3, min(seconds) * 1e3
    figures["images_per_second"] = batch_size / median
    figures["peak_bytes"] = max(turn["peak_bytes"] for turn in figures["turns"])
    if rates is None or name == "mae":
        return
    patches = (settings.image_size // PATCH_SIZE) ** 2
    dense = name in ("masked_dense", "direct") or case.mask_ratio == 0
    works = step_works(
        case.backbone,
        batch_size=batch_size,
        visible_patches=patches if dense else count_visible(patches, case.mask_ratio),
        patches=patches,
        parameters=figures["parameters"],
    )
    figures["floor_ms"] = step_floor_seconds(works, rates) * 1e3
    figures["floor_gemm_ms"] = sum(work.matrix for work in works) / rates.matrix * 1e3
    figures["floor_bytes_ms"] = sum(work.moved for work in works) / rates.copy * 1e3


def ratios_of(arms: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each sparse arm over masked_dense and over mae: time turn by turn, and peak memory."""
    ratios = []
    for name, figures in arms.items():
        for other in ("masked_dense", "mae"):
            base = arms.get(other, {"failed": "absent"})
            if name in ("masked_dense", "mae") or "failed" in figures or "failed" in base:
                continue
            turns = zip(figures["turns"], base["turns"], strict=True)
            pairs = [statistics.median(a["seconds"]) / statistics.median(b["seconds"]) for a, b in turns]
            ratios.append(
                {
                    "arm": name,
                    "to": other,
                    "time": statistics.median(pairs),
                    "time_range": [min(pairs), max(pairs)],
                    "memory": figures["peak_bytes"] / max(1, base["peak_bytes"]),
                }
            )
    return ratios


def without(case: StepCase, names: tuple[str, ...]) -> StepCase:
    """The case without some arms."""
    return replace(case, arms=tuple(name for name in case.arms if name not in names))
