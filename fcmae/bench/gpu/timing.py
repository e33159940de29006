"""Times of short calls on a device, the rates that the device reaches, and what it is.

On CUDA the calls are captured in a graph and its replays timed by events, so that launching costs nothing;
the calls rotate over input sets that together exceed the cache, and keep their outputs apart. On a CPU, where
only the benchmark's own logic is tested, the clock of the process is read.
"""

import itertools
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fcmae.bench.floors import Rates

WARM_UP = 3
REPEATS = 21
MAX_SETS = 64
ROOT = Path(__file__).parents[2]

CLOCK_QUERY = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one call.

    Attributes:
        seconds: Of one call, each a mean over the input sets.
        sets: Input sets that the calls rotate over.
        uncaptured: Why no captured graph was replayed, so that launching is in the times; None if one was.
    """

    seconds: tuple[float, ...]
    sets: int
    uncaptured: str | None

    @property
    def median(self) -> float:
        """The median in seconds."""
        return statistics.median(self.seconds)


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory; 0 where it does not matter."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def count_sets(bytes_per_set: int, device: torch.device) -> int:
    """Input sets that together exceed twice the cache."""
    return min(MAX_SETS, max(2, 2 * cache_bytes(device) // max(1, bytes_per_set) + 1))


def time_calls(
    make: Callable[[int], Callable[[], object]],
    sets: int,
    device: torch.device,
    *,
    repeats: int = REPEATS,
) -> Timing:
    """Time one call of `make(i)()`, over i in range(sets) in turn.

    Args:
        make: Builds the i-th input set and returns the call on it; run on the stream that is captured, since
            a backward pass runs on the stream of its forward pass.
        sets: See `count_sets`.
        device: Of the inputs.
        repeats: Timed rounds over all sets.
    """
    if device.type != "cuda":
        calls = [make(index) for index in range(sets)]
        return Timing(seconds=_by_clock(calls, repeats), sets=sets, uncaptured="not a CUDA device")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        calls = [make(index) for index in range(sets)]
        for _ in range(WARM_UP):
            for call in calls:
                call()
        torch.cuda.synchronize(device)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                kept = [call() for call in calls]  # every call writes to memory of its own
        except RuntimeError as error:  # recorded, and marked in the table
            torch.cuda.synchronize(device)
            seconds = _by_events(lambda: [call() for call in calls], sets, repeats)
            return Timing(seconds=seconds, sets=sets, uncaptured=str(error).split("\n")[0])
        seconds = _by_events(graph.replay, sets, repeats)
        del kept, graph
    torch.cuda.empty_cache()  # what lies cached for this stream is no use to the next
    return Timing(seconds=seconds, sets=sets, uncaptured=None)


def _by_clock(calls: Sequence[Callable[[], object]], repeats: int) -> tuple[float, ...]:
    for call in calls:
        call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for call in calls:
            call()
        seconds.append((time.perf_counter() - start) / len(calls))
    return tuple(seconds)


def _by_events(run: Callable[[], object], sets: int, repeats: int) -> tuple[float, ...]:
    for _ in range(WARM_UP):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return tuple(a.elapsed_time(b) / 1e3 / sets for a, b in itertools.pairwise(marks))


def measure_rates(device: torch.device, *, copy_bytes: int = 2**30, gemm: int = 8192) -> Rates:
    """Copy, bf16 GEMM and float32 GEMM (no tf32) on random data, medians."""

    def copying(_: int) -> Callable[[], object]:
        source = torch.randn(copy_bytes // 4, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def multiplying(side: int, dtype: torch.dtype) -> Callable[[int], Callable[[], object]]:
        def make(_: int) -> Callable[[], object]:
            a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(a)
            return lambda: torch.mm(a, b, out=out)

        return make

    copy = time_calls(copying, 2, device).median
    matrix = time_calls(multiplying(gemm, torch.bfloat16), 1, device).median
    vector = time_calls(multiplying(gemm // 2, torch.float32), 1, device).median
    return Rates(
        copy=2 * copy_bytes / copy, matrix=2 * gemm**3 / matrix, vector=2 * (gemm // 2) ** 3 / vector
    )


def device_facts(device: torch.device, commit: str | None) -> dict[str, Any]:
    """What the figures were measured on, for the results."""
    facts: dict[str, Any] = {
        "type": device.type,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit or _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
    }
    if device.type != "cuda":
        return {**facts, "name": "CPU", "memory_bytes": None, "multiprocessors": None, "cache_bytes": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        **facts,
        "name": properties.name,
        "capability": list(torch.cuda.get_device_capability(device)),
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cache_bytes": properties.L2_cache_size,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _nvidia_smi(("driver_version",)).get("driver_version"),
        "clocks": _nvidia_smi(CLOCK_QUERY),
    }


def slug(name: str) -> str:
    """A device's name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this source tree, "-dirty" behind it if files differ from it; None without git."""
    return _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"])


def _nvidia_smi(fields: Sequence[str]) -> dict[str, str]:
    """Readings of the driver's tool; empty where it cannot be read."""
    line = _output(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    if line is None:
        return {}
    cells = [cell.strip() for cell in line.split("\n")[0].split(",")]
    return dict(zip(fields, cells, strict=True))


def _output(command: list[str]) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
