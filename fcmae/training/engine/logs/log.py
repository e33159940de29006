"""log.jsonl, and whoever else is told what a run writes there."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from torch import Tensor

from fcmae.errors import InputError
from fcmae.training.engine.logs.boards import Board
from fcmae.training.engine.logs.progress import open_progress

# Events of one process' life. All others belong to their step, which a resumed run makes again.
_LASTING = (
    "start",
    "end",
    "stopped",
    "process_lost",
    "refused_checkpoint",
    "other_batches",
    "left_out",
    "non_finite",
)


class RunLog:
    """Events of a run, one JSON object a line, flushed at once; numbers and pictures go to dashboards too.

    On a resumed run, the lines that the coming steps will write again are dropped first, so that no curve
    doubles. Processes other than the first write to `log-rank<r>.jsonl` and show nothing.

    Args:
        run_dir: The run's folder; made where it is missing.
        start: Optimiser steps already done.
        steps: Optimiser steps of the whole run.
        rank: Number of this process.
        boards: Opens the dashboards, in the first process alone.
    Attributes:
        step: Optimiser steps done.
    Raises:
        InputError: the folder cannot be written to, or a dashboard cannot begin.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        start: int,
        steps: int,
        rank: int = 0,
        boards: Callable[[], Sequence[Board]] = tuple,
    ) -> None:
        self.path = Path(run_dir) / ("log.jsonl" if rank == 0 else f"log-rank{rank}.jsonl")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_repeated(self.path, start=start)
            self._boards = boards() if rank == 0 else ()
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.step = start
        self._newest: dict[str, float | None] = {}
        self._progress = open_progress(start=start, steps=steps, shown=rank == 0)

    def write(self, event: str, *, step: int, **values: Any) -> None:
        """Append {"event", "step", **values}; a number that is not finite, which JSON lacks, as null.

        Raises:
            InputError: the disk is full or gone.
        """
        values = {name: value if _has_sign(value) else None for name, value in values.items()}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if event == "train":
            self._newest |= numbers
        try:
            self._file.write(json.dumps({"event": event, "step": step, **values}, allow_nan=False) + "\n")
            self._file.flush()
            for board in self._boards if numbers else ():
                board.numbers({f"{event}/{name}": value for name, value in numbers.items()}, step=step)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def picture(self, event: str, picture: Tensor, *, step: int, **values: Any) -> None:
        """Write a picture, uint8 [H, W, 3], to `<run>/<event>s/step_<step>.png`, and its event with "file".

        Raises:
            InputError: the disk is full or gone.
        """
        file = Path(f"{event}s", f"step_{step:08d}.png")
        path = self.path.parent / file
        try:
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".tmp")
            Image.fromarray(picture.numpy()).save(temporary, format="PNG")
            os.replace(temporary, path)
            for board in self._boards:
                board.picture(event, picture, step=step)
        except OSError as error:
            raise _cannot_write(path, error) from error
        self.write(event, step=step, file=str(file), **values)

    def say(self, message: str) -> None:
        """Print a line, above the progress bar where there is one."""
        self._progress.say(message)

    def advance(self, **shown: float) -> None:
        """Count a step; `shown` stands beside it, with what the log last said of its training."""
        self.step += 1
        self._progress.advance({**self._newest, **shown})

    def close(self) -> None:
        """Close the files, the dashboards and the bar.

        Raises:
            InputError: the disk is full or gone.
        """
        self._progress.close()
        failed: OSError | None = None
        for opened in (self._file, *self._boards):
            try:
                opened.close()
            except OSError as error:
                failed = error
        if failed is not None:
            raise _cannot_write(self.path, failed) from failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except InputError:
            if error is None:  # otherwise that one says more
                raise


def _has_sign(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"run.dir: expected to write {path}, got: {error.strerror}. Free space or choose another --run.dir."
    )


def _drop_repeated(path: Path, *, start: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the line that a crash cut off
            continue
        if entry["event"] in _LASTING or entry["step"] <= start:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
