"""One arm in a process of its own: `python -m fcmae.bench.worker`, driven over its standard streams.

Reads a StepSpec as a JSON line; answers every further line by one timed step.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from fcmae.bench.arms import StepSpec, build_step

WARM_UP = 2

CLEAR_REFS = Path("/proc/self/clear_refs")
"""Linux: writing 5 resets the peak of the resident memory, VmHWM."""


def reset_peak(device: str) -> int:
    """Start a new peak of memory where the system can; returns the bytes in use, from which it is counted."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
    return peak_bytes(device)


def peak_bytes(device: str) -> int:
    """Most bytes in use since `reset_peak`; where it cannot be reset, since the process began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if CLEAR_REFS.exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Build the arm, warm it up, then time a step for each line of standard input."""
    spec = StepSpec(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(spec.threads)
    network, step = build_step(spec)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    before = reset_peak(spec.device)
    for _ in range(WARM_UP):
        loss = step()
    print(json.dumps({"loss": float(loss), "parameters": parameters}), flush=True)
    for _ in sys.stdin:
        if spec.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if spec.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = peak_bytes(spec.device) - before
        print(json.dumps({"seconds": seconds, "peak_bytes_above_weights": peak}), flush=True)


if __name__ == "__main__":
    main()
