"""The page of one run, and the page that compares several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fcmae.report import page, plots
from fcmae.report.page import Cell, Column, Html
from fcmae.report.run.events import counts, events_of, outcome, places
from fcmae.report.run.pictures import latest_pictures, pictures_over_time
from fcmae.report.run.record import Curve, RunRecord

PAGE = "report.html"
"""In the run's folder."""

_LABELS = {
    "loss": "loss",
    "lr": "learning rate",
    "gradient_norm": "norm of the gradient",
    "images_per_second": "images/s",
    "data_wait": "data wait, share of the time",
    "memory_mb": "peak memory, MiB",
}
_LOGARITHMIC = ("gradient_norm",)
_FROM_ZERO = ("images_per_second", "data_wait", "memory_mb")
_STARTING = ("run", "resume")
_MOST_EVENTS = 200
"""Rows of the table of events; the log holds the others."""

Named = Sequence[tuple[str, Curve | None]]
"""Curves of one value: (run or layer, curve); None: it has none."""


def write_run_page(path: Path, run: RunRecord) -> None:
    """Write the page of a run to `path`."""
    text, tone = outcome(run)
    page.write_page(
        path,
        title=f"Run {run.name}",
        subtitle=_subject(run),
        blocks=[
            page.notice(text, tone=tone),
            _tiles(run),
            _training([run]),
            *_evaluation([run]),
            *_diversity(run),
            *_pictures(pictures_over_time(run), "Reconstructions"),
            _events(run),
            _measured_on([run]),
            page.section("Configuration", page.details("config.yaml", _yaml(run.config))),
        ],
    )


def write_runs_page(path: Path, runs: Sequence[RunRecord]) -> None:
    """Write the page that compares runs to `path`."""
    page.write_page(
        path,
        title=f"{len(runs)} runs",
        subtitle=", ".join(run.name for run in runs),
        blocks=[
            _overview(runs),
            _training(runs),
            *_evaluation(runs),
            *_smallest_distance(runs),
            *(block for run in runs for block in _pictures(latest_pictures(run), run.name)),
            *_differences(runs),
            _measured_on(runs),
            page.section("Configurations", *(page.details(run.name, _yaml(run.config)) for run in runs)),
        ],
    )


def _subject(run: RunRecord) -> str:
    """What was trained on what."""
    model, data = run.config.get("model", {}), run.config.get("data", {})
    what = f"{model.get('method', 'fine-tuning')} of {model.get('backbone', 'a network')}"
    images = next((event["images"] for event in run.of("start") if "images" in event), None)
    source = data.get("root") or data.get("source", "unknown images")
    return f"{what}, {f'{images:,} images of ' if images is not None else ''}{source}"


def _tiles(run: RunRecord) -> Html:
    curves, tiles = run.curves(), [("steps", f"{run.step:,}", f"of {run.steps:,}")]
    if "loss" in curves:
        tiles.append(("loss", f"{curves['loss'].last:.4g}", f"first {curves['loss'].values[0]:.4g}"))
    for name, curve in run.curves("eval").items():
        if "accuracy" in name and "step" not in name:
            tiles.append((name.replace("_", " "), f"{curve.values[-1]:.1%}", "validation images"))
    speed, wait = run.typical("images_per_second"), run.typical("data_wait")
    if speed is not None and wait is not None:
        tiles.append(("images/s", f"{speed:,.0f}", f"median; {wait:.0%} waiting for data"))
    if "memory_mb" in curves:
        tiles.append(("peak memory", f"{max(curves['memory_mb'].values):,.0f}", "MiB of one process"))
    distances = run.curves("diversity").get("feature_distance")
    if distances is not None:
        tiles.append(("feature distance", f"{distances.values[-1]:.3f}", "of the most alike layer"))
    return page.tiles(tiles)


def _training(runs: Sequence[RunRecord]) -> Html:
    return page.section("Training", page.columns(*_figures(runs, "train")))


def _evaluation(runs: Sequence[RunRecord]) -> list[Html]:
    figures = _figures(runs, "eval")
    return [page.section("Evaluation", page.columns(*figures))] if figures else []


def _figures(runs: Sequence[RunRecord], kind: str) -> list[Html]:
    """A plot for each value that any run logged."""
    curves = [(run.name, run.curves(kind)) for run in runs]
    found = dict.fromkeys(name for _, named in curves for name in named if not name.startswith("best_"))
    known = [name for name in _LABELS if name in found]
    return [
        _figure(name, [(run, named.get(name)) for run, named in curves])
        for name in dict.fromkeys((*known, *found))
    ]


def _figure(name: str, curves: Named, *, label: str | None = None) -> Html:
    label = label or _LABELS.get(name, name.replace("_", " "))
    drawn = [(run, curve) for run, curve in curves if curve is not None]
    ends = ", ".join(
        f"{run + ': ' if len(curves) > 1 else ''}{curve.values[0]:.4g} to {curve.last:.4g}"
        for run, curve in drawn
    )
    return page.figure(
        plots.histories(
            [(run, curve.steps, curve.values) if curve else (run, (), ()) for run, curve in curves],
            label=label,
            logarithmic=name in _LOGARITHMIC,
            from_zero=name in _FROM_ZERO,
        ),
        alt=f"{label} over the optimiser steps",
        caption=f"{label[0].upper() + label[1:]}, from first to last: {ends}.",
    )


def _diversity(run: RunRecord) -> list[Html]:
    layers = [(name, curve) for name, curve in run.curves("diversity").items() if name != "feature_distance"]
    if not layers:
        return []
    return [
        page.section(
            "Feature diversity",
            page.paragraph(
                "Cosine distance of the channels that the last layer of an MLP reads, on the run's fixed "
                "images, whole. 0: all channels are the same up to a factor; orthogonal ones: nearly 0.5."
            ),
            _figure("distance", layers, label="cosine distance"),
        )
    ]


def _smallest_distance(runs: Sequence[RunRecord]) -> list[Html]:
    curves = [(run.name, run.curves("diversity").get("feature_distance")) for run in runs]
    if not any(curve for _, curve in curves):
        return []
    figure = _figure("feature_distance", curves, label="cosine distance, smallest of the layers")
    return [page.section("Feature diversity", figure)]


def _pictures(gallery: Html | None, title: str) -> list[Html]:
    return [] if gallery is None else [page.section(title, gallery)]


def _events(run: RunRecord) -> Html:
    events = events_of(run)
    found = counts(run)
    blocks = [page.paragraph(", ".join(f"{kind}: {count}" for kind, count in found.items()) + ".")]
    rows = [list[Cell](event) for event in events[:_MOST_EVENTS]]
    columns = [Column(title="step", format=","), Column(title="event"), Column(title="what")]
    left = len(events) - len(rows)
    caption = "In the order of the log" + (f"; {left} more are in log.jsonl" if left else "")
    return page.section("Events", *(blocks if found else []), page.table(columns, rows, caption=caption))


def _measured_on(runs: Sequence[RunRecord]) -> Html:
    rows = [[run.name, place] for run in runs for place in places(run)]
    table = page.table(
        [Column(title="run"), Column(title="devices, machine, PyTorch, commit")],
        rows,
        caption="One row for each place where the run was started or went on",
    )
    return page.section("Measured on", table)


def _overview(runs: Sequence[RunRecord]) -> Html:
    accuracies = [run.curves("eval").get("accuracy") for run in runs]
    columns = [
        Column(title="run"),
        Column(title="what"),
        Column(title="backbone"),
        Column(title="steps", format=","),
        Column(title="loss", format=".4f"),
        *([Column(title="accuracy, %", format=".1f")] if any(accuracies) else []),
        Column(title="images/s", format=",.0f"),
        Column(title="wait, %", format=".1f"),
        Column(title="MiB", format=",.0f"),
        Column(title="events"),
        Column(title="ended"),
    ]
    rows: list[list[Cell]] = []
    for run, accuracy in zip(runs, accuracies, strict=True):
        curves, model = run.curves(), run.config.get("model", {})
        wait = run.typical("data_wait")
        rows.append(
            [
                run.name,
                model.get("method", "finetune"),
                model.get("backbone"),
                run.step,
                curves["loss"].last if "loss" in curves else None,
                *([None if accuracy is None else 100 * accuracy.values[-1]] if any(accuracies) else []),
                run.typical("images_per_second"),
                None if wait is None else 100 * wait,
                max(curves["memory_mb"].values) if "memory_mb" in curves else None,
                ", ".join(f"{count} x {kind}" for kind, count in counts(run).items()) or None,
                run.ending["event"].replace("_", " ") if run.ending else None,
            ]
        )
    caption = (
        "Loss: the mean of the last fiftieth of the log. Speed and wait for data: medians. MiB: the peak."
    )
    methods = {row[1] for row in rows}
    remark = [page.paragraph("Losses of different methods cannot be compared.")] if len(methods) > 1 else []
    return page.section("Runs", page.table(columns, rows, caption=caption), *remark)


def _differences(runs: Sequence[RunRecord]) -> list[Html]:
    """The settings that are not the same in all runs, but for where and how they were started."""
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values if key.partition(".")[0] not in _STARTING)
    differing = [key for key in keys if len({str(values.get(key)) for values in flat}) > 1]
    if not differing:
        return []
    rows = [[key, *(_text(values.get(key)) for values in flat)] for key in differing]
    columns = [Column(title="setting"), *(Column(title=run.name) for run in runs)]
    return [page.section("What differs", page.table(columns, rows, caption="Settings that are not the same"))]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False)
