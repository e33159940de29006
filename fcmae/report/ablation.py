"""The page of an ablation: one table of its arms, their paired differences, times, memory and losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcmae.report import page
from fcmae.report.ablation_result import (
    AblationResult,
    ArmSummary,
    PairedDifference,
    paired_differences,
    summarise,
)
from fcmae.report.ablation_text import LABELS, agreement_text, scaled, speed_text
from fcmae.report.page import Column, Html
from fcmae.report.plots import loss_curves

_FEW = "Few labels: accuracy of logistic regression on frozen features, mean of three fixed lists of images."
_MEANINGS = {
    "loss": "Loss: mean of the last tenth of the steps that were logged.",
    "knn": "k-NN: accuracy of 20 nearest neighbours by cosine on frozen features.",
    "probe": "Probe: accuracy of logistic regression on standardised frozen features.",
    **dict.fromkeys(("lowshot_1", "lowshot_2", "lowshot_5", "lowshot_1percent"), _FEW),
    "finetune": "Fine-tuned: accuracy at the last evaluation of fine-tuning.",
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss of one arm, the mean over its finished seeds."""

    name: str
    steps: Sequence[int]
    losses: Sequence[float]


def write_ablation_page(
    path: Path, result: AblationResult, *, curves: Sequence[Curve], configs: Mapping[str, str]
) -> None:
    """Write the page of an ablation, finished or not.

    Args:
        path: The .html file.
        result: What was found so far.
        curves: Of the arms with a finished run.
        configs: Arm -> configuration as it ran, YAML.
    """
    done = sum(run.state == "done" for run in result.runs)
    places = list(dict.fromkeys(place for run in result.runs for place in run.measured_on))
    images = (
        f" {result.held_out['train']:,} scanned digits to train on, {result.held_out['val']:,} held out."
        if result.held_out
        else ""
    )
    page.write_page(
        path,
        title=result.title,
        subtitle=f"{len(result.arms)} arms, seeds {', '.join(map(str, result.seeds))}; {done} of "
        f"{len(result.runs)} runs are done.{images}",
        blocks=[
            *_notices(result),
            _arms(result, summarise(result), places),
            _differences(result, paired_differences(result)),
            *_speed(result),
            *_losses(curves),
            _runs(result, places),
            _places(places),
            _configs(result, configs),
        ],
    )


def _notices(result: AblationResult) -> list[Html]:
    notices = []
    if result.agreement is not None:
        tone = {True: "good", False: "bad", None: "plain"}[result.agreement.holds]
        notices.append(page.notice(agreement_text(result), tone=tone))
    notices += [
        page.notice(f"{run.arm}, seed {run.seed} failed: {run.error}", tone="bad")
        for run in result.runs
        if run.state == "failed"
    ]
    return notices


def _arms(result: AblationResult, summaries: Sequence[ArmSummary], places: Sequence[str]) -> Html:
    first = summaries[0].step_seconds
    columns = [Column(title="arm"), Column(title="seeds")]
    for name in result.metrics:
        format_ = ".4f" if name == "loss" else ".1f"
        columns += [Column(title=LABELS[name], format=format_), Column(title="±", format=format_)]
    columns += [
        Column(title="step, s", format=".3f"),
        Column(title=f"time / {summaries[0].arm}", format=".2f"),
        Column(title="peak memory, MiB", format=".0f"),
        Column(title="measured on"),
    ]
    rows: list[list[page.Cell]] = []
    for summary in summaries:
        seconds = summary.step_seconds
        values = [
            None if value is None else scaled(name, value)
            for name in result.metrics
            for value in summary.metrics.get(name, (None, None))
        ]
        rows.append(
            [
                summary.arm,
                summary.seeds,
                *values,
                seconds,
                seconds / first if seconds and first else None,
                summary.peak_memory_mb,
                _letters(summary.measured_on, places),
            ]
        )
    return page.section(
        "What each arm reaches",
        page.table(
            columns, rows, caption="Mean over the finished seeds; ±: standard deviation between seeds"
        ),
        page.paragraph(
            " ".join(dict.fromkeys(_MEANINGS[name] for name in result.metrics))
            + " All arms see the same images in the same order under the same masks where the masks' size is "
            "the same. Time: median step, without the wait for images, mean of the seeds. Memory: the whole "
            "pretraining process, of a GPU what PyTorch allocated, largest of the seeds. The letters "
            "of the last column are explained below."
        ),
    )


def _differences(result: AblationResult, found: Sequence[PairedDifference]) -> Html:
    first = next(iter(result.arms))
    columns = [
        Column(title="arm"),
        Column(title="metric"),
        Column(title="seeds"),
        Column(title="difference", format="+.4f"),
        Column(title="low", format="+.4f"),
        Column(title="high", format="+.4f"),
        Column(title="outcome"),
    ]
    rows: list[list[page.Cell]] = [
        [
            each.arm,
            LABELS[each.metric],
            each.seeds,
            *(
                None if value is None else scaled(each.metric, value)
                for value in (each.difference, each.low, each.high)
            ),
            each.outcome,
        ]
        for each in found
    ]
    caption = f"Each arm less {first}, over the seeds that both have; low and high: 95 % interval of the mean"
    return page.section(
        f"Differences from {first}, paired by seed",
        page.table(columns, rows, caption=caption)
        if rows
        else page.paragraph(f"No other arm shares a finished seed with {first} yet."),
        page.paragraph(
            "Student's t; not settled: the interval holds 0, or there is one seed alone."
            + (" Two seeds make wide intervals." if len(result.seeds) == 2 else "")
        ),
    )


def _speed(result: AblationResult) -> list[Html]:
    return [
        page.section("Time of the equal arms", *map(page.paragraph, text))
        for text in [speed_text(result)]
        if text
    ]


def _losses(curves: Sequence[Curve]) -> list[Html]:
    if not curves:
        return []
    ends = ", ".join(f"{curve.name} {curve.losses[-1]:.4f}" for curve in curves)
    plot = loss_curves([(curve.name, curve.steps, curve.losses) for curve in curves])
    caption = (
        "Training loss, mean of the finished seeds. Arms with other targets or masks have losses that do not "
        "compare."
    )
    return [
        page.section("Losses", page.figure(plot, alt=f"Loss curves; at the end: {ends}.", caption=caption))
    ]


def _runs(result: AblationResult, places: Sequence[str]) -> Html:
    columns = [Column(title="arm"), Column(title="seed"), Column(title="state")]
    columns += [
        Column(title=LABELS[name], format=".4f" if name == "loss" else ".1f") for name in result.metrics
    ]
    columns += [
        Column(title="step, s", format=".3f"),
        Column(title="waits for images, %", format=".0f"),
        Column(title="peak memory, MiB", format=".0f"),
        Column(title="parameters, M", format=".2f"),
        Column(title="measured on"),
    ]
    rows: list[list[page.Cell]] = [
        [
            run.arm,
            run.seed,
            run.state,
            *(scaled(name, run.metrics[name]) if name in run.metrics else None for name in result.metrics),
            run.step_seconds,
            None if run.data_wait is None else 100 * run.data_wait,
            run.peak_memory_mb,
            None if run.parameters is None else run.parameters / 1e6,
            _letters(run.measured_on, places),
        ]
        for run in result.runs
    ]
    return page.section("Every run", page.table(columns, rows, caption="One row an arm and seed"))


def _places(places: Sequence[str]) -> Html:
    lines = [page.paragraph(f"{_letter(index)}: {place}") for index, place in enumerate(places)]
    return page.section("Measured on", *(lines or [page.paragraph("Nothing was run yet.")]))


def _configs(result: AblationResult, configs: Mapping[str, str]) -> Html:
    common = _changes(result.changes) or "nothing"
    names = {arm: f"{arm}: {_changes(changes) or 'the base'}" for arm, changes in result.arms.items()}
    return page.section(
        "What the arms are",
        page.paragraph(f"From {result.file}. All arms differ from its base in: {common}."),
        *(
            page.details(name, configs[arm]) if arm in configs else page.paragraph(name)
            for arm, name in names.items()
        ),
    )


def _changes(changes: Mapping[str, str]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in changes.items())


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index}"


def _letters(measured_on: Sequence[str], places: Sequence[str]) -> str | None:
    return ", ".join(_letter(places.index(place)) for place in measured_on) or None
