"""The page of a comparison of methods: small networks, the same images, the same time."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fcmae.report import page
from fcmae.report.page import Column, Html

_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracy on held-out images, in [0, 1]."""

    knn: float
    """Of 20 nearest neighbours among the training images, labelled."""
    probe: float
    """Of logistic regression on the training images' features, labelled."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method's run."""

    name: str
    backbone: str
    parameters: int
    """Of the encoder."""
    mask_ratio: float
    steps: int
    seconds: float
    """Wall-clock time of pretraining, its start included."""
    images_per_second: float
    losses: tuple[float, float]
    """First and last that were logged; they mean something else in each method."""
    before: Scores
    """Of the random weights that pretraining began with."""
    after: Scores
    collapses: Sequence[str]
    """What the guard saw, a text each."""
    config: str
    """As it ran, YAML."""


def write_methods_page(
    path: Path,
    *,
    arms: Sequence[Arm],
    counts: Mapping[str, int],
    budget: float,
    ratios: Sequence[float],
    times: Mapping[str, Sequence[float]],
) -> None:
    """Write the page of a comparison.

    Args:
        path: The .html file.
        arms: In the order of the table.
        counts: Images of the splits "train" and "val".
        budget: Seconds of pretraining that each arm was given.
        ratios: Mask ratios of `times`.
        times: Encoder -> seconds of a step at each ratio.
    """
    page.write_page(
        path,
        title="Four methods, the same images, the same time",
        subtitle=(
            f"Each pretrained for {budget:.0f} s on {counts['train']:,} scanned digits without their labels; "
            f"accuracies on {counts['val']} others. {os.cpu_count()} cores, {platform.machine()}, "
            f"torch {torch.__version__}."
        ),
        blocks=[*_collapses(arms), _scores(arms, counts["val"]), _costs(ratios, times), _configs(arms)],
    )


def _collapses(arms: Sequence[Arm]) -> list[Html]:
    return [
        page.notice(f"{arm.name} collapsed: {'; '.join(arm.collapses)}.", tone="bad")
        for arm in arms
        if arm.collapses
    ]


def _scores(arms: Sequence[Arm], held_out: int) -> Html:
    columns = [
        Column(title="method"),
        Column(title="backbone"),
        Column(title="parameters, M", format=".2f"),
        Column(title="hidden, %", format=".0f"),
        Column(title="k-NN before, %", format=".1f"),
        Column(title="k-NN after, %", format=".1f"),
        Column(title="probe before, %", format=".1f"),
        Column(title="probe after, %", format=".1f"),
        Column(title="steps", format=","),
        Column(title="images/s", format=".0f"),
        Column(title="loss, first and last"),
    ]
    rows: list[list[page.Cell]] = [
        [
            arm.name,
            arm.backbone,
            arm.parameters / 1e6,
            100 * arm.mask_ratio,
            100 * arm.before.knn,
            100 * arm.after.knn,
            100 * arm.before.probe,
            100 * arm.after.probe,
            arm.steps,
            arm.images_per_second,
            f"{arm.losses[0]:.3f} → {arm.losses[1]:.3f}",
        ]
        for arm in arms
    ]
    error = 100 * (0.25 / held_out) ** 0.5
    return page.section(
        "What each has learnt",
        page.table(columns, rows, caption="Accuracy from frozen features, before and after pretraining"),
        page.paragraph(
            "k-NN: 20 nearest neighbours by cosine. Probe: logistic regression on standardised features. "
            f"Both use the labels of all training scans. One seed; an accuracy on {held_out} scans has a "
            f"standard error of up to {error:.1f} points. The losses of different methods cannot be compared."
        ),
    )


def _costs(ratios: Sequence[float], times: Mapping[str, Sequence[float]]) -> Html:
    columns = [
        Column(title="encoder"),
        *(Column(title=f"{ratio:.0%} hidden", format=".3f") for ratio in ratios),
    ]
    rows: list[list[page.Cell]] = [
        [name, *(value / values[0] for value in values)] for name, values in times.items()
    ]
    return page.section(
        "What hiding saves",
        page.table(
            columns, rows, caption="Time of the encoder's step as a share of that with nothing hidden"
        ),
        page.paragraph(
            "Forward and backward of the encoder on the visible patches alone, 32 images, median of "
            "interleaved rounds; with nothing hidden a step took "
            + ", ".join(f"{values[0]:.3f} s ({name})" for name, values in times.items())
            + f". 0.50 {_TIMES} at half hidden would be the whole saving."
        ),
    )


def _configs(arms: Sequence[Arm]) -> Html:
    return page.section("As it ran", *(page.details(arm.name, arm.config) for arm in arms))
