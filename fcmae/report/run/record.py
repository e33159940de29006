"""What a run's folder tells, also while the run goes on or after it broke off."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

from fcmae.errors import InputError

Event = dict[str, Any]
"""A line of log.jsonl: "event", "step" and what else it says."""

_ENDS = ("end", "stopped", "non_finite", "process_lost")
# Of the other processes' logs; all else in them says what the first process says.
_OF_OTHERS = ("bad_image", "process_lost")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value over the optimiser steps."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """The mean of the last fiftieth of the values: a single one is noise."""
        return mean(self.values[-max(1, len(self.values) // 50) :])


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its folder tells it."""

    folder: Path
    name: str
    """What a comparison calls it."""
    config: dict[str, Any]
    """Of config.yaml."""
    events: tuple[Event, ...]
    """Of all processes, each process' in order; those of others than the first have a "rank"."""

    def of(self, *kinds: str) -> list[Event]:
        """The events of some kinds."""
        return [event for event in self.events if event["event"] in kinds]

    def curves(self, kind: str = "train") -> dict[str, Curve]:
        """Every number that the events of a kind hold, by name, in the order of their first appearance."""
        points: dict[str, tuple[list[int], list[float]]] = {}
        for event in self.of(kind):
            for name, value in event.items():
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    steps, values = points.setdefault(name, ([], []))
                    steps.append(event["step"])
                    values.append(value)
        return {
            name: Curve(name=name, steps=tuple(steps), values=tuple(values))
            for name, (steps, values) in points.items()
        }

    def typical(self, name: str) -> float | None:
        """The median of a number of the training log; None: it was not logged."""
        curve = self.curves().get(name)
        return None if curve is None else median(curve.values)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return int(self.config["train"]["steps"])

    @property
    def step(self) -> int:
        """The last step that the log knows of."""
        return max((event["step"] for event in self.events), default=0)

    @property
    def ending(self) -> Event | None:
        """How the run ended last: "end", "stopped", "non_finite" or "process_lost"; None: it goes on, or
        nobody could say.
        """
        first_process = [event for event in self.of(*_ENDS, "start") if "rank" not in event]
        last = first_process[-1] if first_process else None
        return last if last is not None and last["event"] in _ENDS else None


def read_run(folder: str | Path, *, name: str | None = None) -> RunRecord:
    """Read a run's folder.

    Args:
        folder: With config.yaml and log.jsonl.
        name: What to call it; None: the folder.
    Raises:
        InputError: it is no run's folder.
    """
    path = Path(folder)
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        events = [*_lines(path / "log.jsonl")]
        for file in sorted(path.glob("log-rank*.jsonl")):
            rank = file.stem.removeprefix("log-rank")
            events += [{**event, "rank": rank} for event in _lines(file) if event["event"] in _OF_OTHERS]
    except (OSError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(
            f"run: expected the folder of a run with config.yaml and log.jsonl, got {path}: {reason}."
        ) from error
    if not isinstance(config, dict) or "train" not in config:
        raise InputError(f"run: expected a run's configuration in {path / 'config.yaml'}, got another file.")
    return RunRecord(folder=path, name=name or path.name or str(path), config=config, events=tuple(events))


def names_of(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [path.resolve().parts for path in folders]
    longest = max(len(part) for part in parts)
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in folders]


def _lines(path: Path) -> Iterator[Event]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # a line that a crash cut off, or that is being written
            continue
