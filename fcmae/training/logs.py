"""What a run tells: log.jsonl, TensorBoard, a progress bar."""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fcmae.errors import InputError

# Events of one process' life. All others belong to their step, which a resumed run makes again.
_LASTING = (
    "start",
    "end",
    "stopped",
    "process_lost",
    "refused_checkpoint",
    "other_batches",
    "non_finite",
)

# Of Linux. getrusage would also count the process that started this one, up to the moment of its start.
_STATUS = Path("/proc/self/status")


class RunLog:
    """Events of a run, one JSON object a line, flushed at once; numbers go to TensorBoard too.

    On a resumed run, the lines that the coming steps will write again are dropped first, so that no curve
    doubles. Processes other than the first write to `log-rank<r>.jsonl` and show nothing.

    Args:
        run_dir: The run's folder; made where it is missing.
        start: Optimiser steps already done.
        steps: Optimiser steps of the whole run.
        rank: Number of this process.
    Attributes:
        step: Optimiser steps done.
    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, run_dir: str | Path, *, start: int, steps: int, rank: int = 0) -> None:
        self.path = Path(run_dir) / ("log.jsonl" if rank == 0 else f"log-rank{rank}.jsonl")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_repeated(self.path, start=start)
            self._file = self.path.open("a", encoding="utf-8")
            self._board = (
                SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=start + 1 if start else None)
                if rank == 0
                else None
            )
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.step = start
        tty = sys.stderr.isatty()
        # Without a terminal each refresh is a line of a file somewhere: one every ten seconds.
        self._bar = tqdm(
            total=steps,
            initial=start,
            disable=rank != 0,
            unit="step",
            dynamic_ncols=tty,
            mininterval=0.1 if tty else 10,
        )

    def write(self, event: str, *, step: int, **values: Any) -> None:
        """Append {"event", "step", **values}.

        Raises:
            InputError: the disk is full or gone.
        """
        try:
            self._file.write(json.dumps({"event": event, "step": step, **values}, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if not self._bar.disable:
            self._bar.write(message)
            sys.stdout.flush()

    def advance(self, **shown: float) -> None:
        """Count a step and move the progress bar; `shown` stands behind it."""
        self.step += 1
        if shown:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Close the files and the bar."""
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


class AnyBatch(Protocol):
    """What training reads of a batch, whatever its images are."""

    @property
    def size(self) -> int:
        """Images."""
        ...

    @property
    def bad(self) -> list[str]:
        """`name: reason` of each unreadable image met while this batch was made."""
        ...


_Batch = TypeVar("_Batch", bound=AnyBatch)


class Pace:
    """Images per second and the share of the time spent waiting for data, between two log lines."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was measured; call after a pause such as an evaluation."""
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def fetch(self, batches: Iterator[_Batch]) -> _Batch:
        """The next batch, its wait and its images counted."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        self._images += batch.size
        return batch

    def lap(self, *, devices: int) -> dict[str, float]:
        """{"images_per_second" of all devices, "data_wait" in [0, 1]} since the last restart or lap."""
        seconds = time.perf_counter() - self._began
        values = {
            "images_per_second": round(self._images * devices / seconds, 3),
            "data_wait": round(self._waited / seconds, 4),
        }
        self.restart()
        return values


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far in MiB: allocated on a CUDA device, otherwise resident in this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if _STATUS.exists():
        peak = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if peak is not None:
            return round(int(peak[1]) / 1024, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
