"""How far a run is, on the screen: a bar on a terminal, a plain line now and then elsewhere."""

import sys
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_SECONDS = 10.0
"""Between two plain lines: they are lines of a file somewhere."""
BAR_SECONDS = 0.25
"""Between two drawings of the bar. The loop draws it: a thread would be forked into the loader's workers."""


_WORDS: tuple[tuple[str, str], ...] = (
    ("loss", "loss {:.4g}"),
    ("images_per_second", "{:,.1f} images/s"),
    ("data_wait", "data wait {:.0%}"),
    ("gradient_norm", "gradient {:.3g}"),
    ("memory_mb", "{:,.0f} MiB"),
)


def summary(values: Mapping[str, float | None]) -> str:
    """The numbers of a training step that a reader watches, those that there are, in one line."""
    found = ((words, values.get(name)) for name, words in _WORDS)
    return ", ".join(words.format(value) for words, value in found if value is not None)


class Silence:
    """Shows nothing: a process that is not the first."""

    def say(self, message: str) -> None:
        """Print a line."""

    def advance(self, values: Mapping[str, float | None]) -> None:
        """Count a step; `values` are the newest known of each name."""

    def close(self) -> None:
        """Show the last state."""


class PlainLines(Silence):
    """A line on stderr every PLAIN_SECONDS and after the last step; messages go to stdout."""

    def __init__(self, *, start: int, steps: int) -> None:
        self._start, self._done, self._steps = start, start, steps
        self._values: Mapping[str, float | None] = {}
        self._began = self._told = monotonic()

    def say(self, message: str) -> None:
        """Print a line."""
        print(message, flush=True)

    def advance(self, values: Mapping[str, float | None]) -> None:
        """Count a step."""
        self._done, self._values = self._done + 1, values
        if self._done == self._steps or monotonic() - self._told >= PLAIN_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._told = monotonic()
        seconds = (self._told - self._began) / (self._done - self._start) * (self._steps - self._done)
        left = timedelta(seconds=round(seconds))
        print(
            f"step {self._done}/{self._steps}, {summary(self._values)}, {left} left",
            file=sys.stderr,
            flush=True,
        )


class Bar(Silence):
    """A bar at the foot of a terminal, with a line of numbers below it; messages scroll above it.

    Args:
        start: Steps already done.
        steps: Of the whole run.
        console: Where it is drawn.
    """

    def __init__(self, *, start: int, steps: int, console: Console) -> None:
        self._bar = _BarAndNumbers(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            speed_estimate_period=300,
            expand=True,
            # Else messages for a file would be drawn on the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=steps, completed=start)
        self._drawn = 0.0
        self._bar.start()

    def say(self, message: str) -> None:
        """Print a line."""
        print(message, flush=True)  # which rich takes where it goes to the same terminal

    def advance(self, values: Mapping[str, float | None]) -> None:
        """Count a step."""
        self._bar.numbers = summary(values)
        self._bar.advance(self._task)
        if monotonic() - self._drawn >= BAR_SECONDS:
            self._drawn = monotonic()
            self._bar.refresh()

    def close(self) -> None:
        """Draw the last state and leave it."""
        self._bar.stop()


class _BarAndNumbers(Progress):
    numbers = ""

    def get_renderable(self) -> RenderableType:
        """The bar, and the numbers below it."""
        return Group(super().get_renderable(), Text(self.numbers))


def open_progress(*, start: int, steps: int, shown: bool) -> Silence:
    """A bar where stderr is a terminal, plain lines where it is not; silence where not `shown`."""
    if not shown:
        return Silence()
    if sys.stderr.isatty():
        return Bar(start=start, steps=steps, console=Console(stderr=True))
    return PlainLines(start=start, steps=steps)
