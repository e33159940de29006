"""What an ablation has found so far, and the statistics of its table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Literal

from fcmae.report.comparison import compare

RunState = Literal["done", "failed", "unfinished"]
Outcome = Literal["higher", "lower", "not settled"]

_OUTCOMES: dict[str, Outcome] = {"win": "higher", "lose": "lower", "tie": "not settled"}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One arm with one seed."""

    arm: str
    seed: int
    state: RunState
    error: str | None = None
    """Why it failed."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Loss as it is, accuracies in [0, 1]."""
    step_seconds: float | None = None
    """Median time of an optimiser step, without the wait for images."""
    data_wait: float | None = None
    """Median share of the time spent waiting for images."""
    peak_memory_mb: float | None = None
    """Of the pretraining process: allocated on a GPU, otherwise resident, Python and PyTorch included."""
    parameters: int | None = None
    measured_on: Sequence[str] = ()
    """Machine, PyTorch and commit of each launch that took part."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two arms that compute the same: how far apart their losses are."""

    arms: tuple[str, str]
    steps: int
    """First steps that are compared."""
    tolerance: float
    worst: Mapping[int, float]
    """Seed -> largest absolute difference of the losses of a step, for the seeds that both arms have."""

    @property
    def holds(self) -> bool | None:
        """Whether every seed is within the tolerance; None: nothing to compare yet."""
        return all(value <= self.tolerance for value in self.worst.values()) if self.worst else None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The time of the first of two equal arms as a share of the other's."""

    arms: tuple[str, str]
    ratios: Mapping[int, float]
    """Seed -> ratio of the median steps."""
    visible: float
    """Share of the masking cells that the encoder sees."""
    flops: float | None
    """Share of the step's arithmetic: the encoder's at the visible sites, the decoder's at all."""


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """An ablation's runs, done or not."""

    title: str
    file: str
    arms: Mapping[str, Mapping[str, str]]
    """Name -> differences from the base; the first is what the others are compared with."""
    changes: Mapping[str, str]
    """Differences that all arms share."""
    seeds: Sequence[int]
    metrics: Sequence[str]
    runs: Sequence[RunResult]
    agreement: Agreement | None = None
    speed: Speed | None = None
    held_out: Mapping[str, int] | None = None
    """Built-in scans of the splits "train" and "val"; None: the images are the user's."""


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm over its finished seeds."""

    arm: str
    seeds: int
    metrics: Mapping[str, tuple[float, float | None]]
    """Mean, and standard deviation between seeds (n - 1; None for one)."""
    step_seconds: float | None
    """Mean over seeds of the median step."""
    peak_memory_mb: float | None
    """Largest of the seeds."""
    measured_on: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """An arm less the first one in a metric, over the seeds that both have."""

    arm: str
    metric: str
    seeds: int
    difference: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval of the mean difference (Student's t); None with one seed."""
    outcome: Outcome


def finished(result: AblationResult, arm: str) -> list[RunResult]:
    """The arm's finished runs, by seed as the file lists them."""
    return [run for run in result.runs if run.arm == arm and run.state == "done"]


def summarise(result: AblationResult) -> list[ArmSummary]:
    """One summary an arm, in the file's order."""
    summaries = []
    for arm in result.arms:
        runs = finished(result, arm)
        steps = [run.step_seconds for run in runs if run.step_seconds is not None]
        memory = [run.peak_memory_mb for run in runs if run.peak_memory_mb is not None]
        columns = {name: [run.metrics[name] for run in runs] for name in result.metrics} if runs else {}
        summaries.append(
            ArmSummary(
                arm=arm,
                seeds=len(runs),
                metrics={
                    name: (mean(values), stdev(values) if len(values) > 1 else None)
                    for name, values in columns.items()
                },
                step_seconds=mean(steps) if steps else None,
                peak_memory_mb=max(memory, default=None),
                measured_on=list(dict.fromkeys(place for run in runs for place in run.measured_on)),
            )
        )
    return summaries


def paired_differences(result: AblationResult) -> list[PairedDifference]:
    """Every arm but the first, less the first, in every metric; arms without a common seed are left out."""
    first, *others = result.arms
    base = {run.seed: run for run in finished(result, first)}
    found = []
    for arm in others:
        pairs = [(run, base[run.seed]) for run in finished(result, arm) if run.seed in base]
        for metric in result.metrics if pairs else ():
            found.append(_paired(arm, metric, [(a.metrics[metric], b.metrics[metric]) for a, b in pairs]))
    return found


def _paired(arm: str, metric: str, pairs: Sequence[tuple[float, float]]) -> PairedDifference:
    if len(pairs) == 1:
        (a, b) = pairs[0]
        return PairedDifference(
            arm=arm, metric=metric, seeds=1, difference=a - b, low=None, high=None, outcome="not settled"
        )
    judged = compare([a for a, _ in pairs], [b for _, b in pairs])
    return PairedDifference(
        arm=arm,
        metric=metric,
        seeds=len(pairs),
        difference=judged.difference,
        low=judged.low,
        high=judged.high,
        outcome=_OUTCOMES[judged.outcome],
    )
