"""How fast a run goes, and the memory it takes."""

import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import torch

# Of Linux. getrusage would also count the process that started this one, up to the moment of its start.
_STATUS = Path("/proc/self/status")


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
