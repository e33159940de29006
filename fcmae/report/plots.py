"""Plots of a report, drawn in the page's colours (see `fcmae.report.page.figure`)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fcmae.report.page import FIRST, GRID, INK, MUTED, SECOND

# Narrow on purpose: on a phone the plot is shown at about this size, and its text stays readable.
_WIDTH = 4.7
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}
# Of networks or runs, one after the other.
_COLOURS, _LINES = (FIRST, SECOND, INK, MUTED), ("-", "--", ":", "-.")


def _as_written(name: str) -> str:
    """A name for a legend, which would read a formula between two $ and leave out what begins with _."""
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


@contextmanager
def _plot(height: float) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)  # never a window, whatever the machine has
        yield figure, figure.subplots()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: its name, and one value a seed."""

    name: str
    values: Sequence[float]


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> Figure:
    """Training loss over optimiser steps: logged values pale, the mean of each and its neighbours strong."""
    reach = len(losses) // 40
    windows = [losses[max(0, index - reach) : index + reach + 1] for index in range(len(losses))]
    means = [mean(window) for window in windows]
    with _plot(2.9) as (figure, axes):
        axes.plot(steps, losses, color=FIRST, alpha=0.35, linewidth=1.0)
        axes.plot(steps, means, color=FIRST, linewidth=1.8)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("loss at the masked patches")
        axes.set_xlim(left=0)
    return figure


# Behind the page's own two; told apart on light and on dark paper.
_FURTHER = ("#2a9d5c", "#9467bd", "#c44e8a", "#7f8c1f", "#5d8fd6", "#8c6d5a")


def loss_curves(curves: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> Figure:
    """One line an arm: (name, steps, losses), each loss the mean of its neighbours and itself.

    Later lines are thinner, so that one which lies on another leaves it in sight.
    """
    colours = (FIRST, SECOND, *_FURTHER)
    with _plot(3.1) as (figure, axes):
        for index, (name, steps, losses) in enumerate(curves):
            reach = len(losses) // 80
            means = [mean(losses[max(0, at - reach) : at + reach + 1]) for at in range(len(losses))]
            axes.plot(
                steps,
                means,
                color=colours[index % len(colours)],
                linestyle=("-", "--", ":")[index // len(colours) % 3],
                linewidth=max(1.1, 4.8 - 1.8 * index),
                label=_as_written(name),
            )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("loss, mean of the seeds")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8.0)
    return figure


def paired_accuracies(first: Arm, second: Arm) -> Figure:
    """Accuracy of each seed in both arms, the same seed joined by a line, with the mean of each arm."""
    with _plot(2.9) as (figure, axes):
        for a, b in zip(first.values, second.values, strict=True):
            axes.plot((0, 1), (100 * b, 100 * a), color=GRID, linewidth=1.2, zorder=1)
        for place, arm, colour in ((0, second, SECOND), (1, first, FIRST)):
            percent = [100 * value for value in arm.values]
            middle = mean(percent)
            axes.scatter(
                [place] * len(percent), percent, color=colour, s=26, zorder=3, alpha=0.85, linewidths=0
            )
            axes.plot((place - 0.17, place + 0.17), (middle, middle), color=colour, linewidth=2.4, zorder=2)
            axes.annotate(
                f"{middle:.1f} %",
                (place + 0.17, middle),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.set_xticks((0, 1), (second.name, first.name), color=INK)
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, 1.6)
        axes.margins(y=0.15)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("accuracy on held-out scans, %")
    return figure


def shares(names: Sequence[str], values: Sequence[float]) -> Figure:
    """Bars of shares of a whole, which is drawn as a line at 100 %."""
    with _plot(0.55 + 0.4 * len(names)) as (figure, axes):
        percent = [100 * value for value in values]
        bars = axes.barh(range(len(names)), percent, color=FIRST, height=0.6)
        axes.bar_label(bars, [f"{value:.0f} %" for value in percent], padding=4, color=INK)
        axes.axvline(100, color=SECOND, linewidth=1.8)
        axes.set_yticks(range(len(names)), names, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, max(118, *(value * 1.2 for value in percent)))
        axes.set_xlabel("% of masked dense")
        axes.grid(axis="y", visible=False)
    return figure


_POINTS = 240
"""Of a long curve: about half as many as pixels of a plot's width."""


def histories(
    curves: Sequence[tuple[str, Sequence[int], Sequence[float]]],
    *,
    label: str,
    logarithmic: bool = False,
    from_zero: bool = False,
) -> Figure:
    """A logged value over the optimiser steps, one line a run.

    A long curve is drawn through the means of equal stretches; of a single one the smallest and the largest
    value of each stretch bound a pale band.

    Args:
        curves: (name, steps, values) of each run; one without values keeps its colour.
        label: Of the values.
        logarithmic: The scale, where all values are positive and over ten times apart.
        from_zero: Whether the scale begins there.
    """
    with _plot(2.9) as (figure, axes):
        for place, (name, steps, values) in enumerate(curves):
            if not values:
                continue
            reach = math.ceil(len(values) / _POINTS)
            stretches = [slice(first, first + reach) for first in range(0, len(values), reach)]
            at = [mean(steps[stretch]) for stretch in stretches]
            style: dict[str, Any] = {
                "color": _COLOURS[place % len(_COLOURS)],
                "linestyle": _LINES[place // len(_COLOURS) % len(_LINES)],
                "marker": "o" if len(at) == 1 else None,
            }
            if len(curves) == 1 and reach > 1:
                low = [min(values[stretch]) for stretch in stretches]
                high = [max(values[stretch]) for stretch in stretches]
                axes.fill_between(at, low, high, color=style["color"], alpha=0.25, linewidth=0)
            means = [mean(values[stretch]) for stretch in stretches]
            axes.plot(at, means, label=_as_written(name), markersize=4, linewidth=1.5, **style)
        low, high = (end(value for _, _, values in curves for value in values) for end in (min, max))
        if logarithmic and low > 0 and high > 10 * low:
            axes.set_yscale("log")
        elif from_zero:
            axes.set_ylim(0, 1.08 * high or 1)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        if len(curves) > 1:
            axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.24))
    return figure


def layer_curves(series: Sequence[tuple[str, Sequence[float]]], *, label: str) -> Figure:
    """A value of each layer over the depth, one line a network.

    Args:
        series: (name, values from the first layer to the last).
        label: Of the values.
    """
    with _plot(3.1) as (figure, axes):
        for place, (name, values) in enumerate(series):
            depth = [100 * (layer + 0.5) / len(values) for layer in range(len(values))]
            axes.plot(
                depth,
                values,
                label=_as_written(name),
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_LINES[place // len(_COLOURS) % len(_LINES)],
                marker="o",
                markersize=3,
                linewidth=1.6,
            )
        axes.set_xlabel("depth, % of the layers")
        axes.set_ylabel(label)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 1.08 * max(1e-3, *(value for _, values in series for value in values)))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def histograms(series: Sequence[tuple[str, Sequence[float]]], *, label: str) -> Figure:
    """How values in [0, 1] are distributed, one outline a network.

    Args:
        series: (name, values).
        label: Of the values.
    """
    with _plot(3.1) as (figure, axes):
        for place, (name, values) in enumerate(series):
            axes.hist(
                values,
                bins=[edge / 40 for edge in range(41)],
                weights=[100 / len(values)] * len(values),
                histtype="step",
                label=_as_written(name),
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_LINES[place // len(_COLOURS) % len(_LINES)],
                linewidth=1.6,
            )
        axes.set_xlabel(label)
        axes.set_ylabel("% of the channels")
        axes.set_xlim(0, 1)
        handles = [
            Line2D([], [], color=patch.get_edgecolor(), linestyle=patch.get_linestyle())
            for patch in axes.patches
        ]
        names = [_as_written(name) for name, _ in series]
        axes.legend(handles, names, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure
