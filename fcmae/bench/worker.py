"""One arm in a process of its own: `python -m fcmae.bench.worker`, driven over its standard streams.

Reads a StepSpec as a JSON line; answers every further line by one timed step.
"""

import json
import resource
import sys
import time

import torch

from fcmae.bench.arms import StepSpec, build_step

WARM_UP = 2


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Build the arm, warm it up, then time a step for each line of standard input."""
    spec = StepSpec(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(spec.threads)
    network, step = build_step(spec)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    weights_peak = _peak_bytes(spec.device)
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
        peak = _peak_bytes(spec.device) - weights_peak
        print(json.dumps({"seconds": seconds, "peak_bytes_above_weights": peak}), flush=True)


if __name__ == "__main__":
    main()
