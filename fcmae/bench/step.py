"""`fcmae bench step`: forward and backward of a pretraining step, arm against arm.

Each arm has a process of its own; their steps are interleaved, so that a change of the machine's speed meets
all of them alike. Times are medians; memory is the peak above what the process held with its weights made.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from fcmae.arguments import OptionParser
from fcmae.bench.arms import ARMS, StepSpec
from fcmae.bench.convmae_arms import CONVMAE_ARMS, CONVMAE_STAGE_ARMS, STAGES
from fcmae.config import require
from fcmae.errors import InputError
from fcmae.machine import machine
from fcmae.masking import count_visible, patch_grid
from fcmae.models import find_preset, require_name
from sparse_ops import Backend

METHODS = {"fcmae": ("convnextv2_tiny", 32), "convmae": ("convmae_base", 16)}
"""Of each method, its backbone unless one is named, and the side of its patches."""
MAE_MASK_RATIO = 0.75
PAUSE_SECONDS = 0.05
EQUAL_ARMS = ("sparse", "masked_dense", "direct")
PARITY = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative difference of the losses of equal arms, above which nothing is timed."""


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser("fcmae bench step", __doc__)
    parser.add_argument("--method", choices=tuple(METHODS), default="fcmae")
    parser.add_argument("--backbone", help="default: convnextv2_tiny, or convmae_base of convmae")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--backend", default="auto", help="engine of the sparse arm")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=(*ARMS, *CONVMAE_STAGE_ARMS),
        help="default: sparse masked_dense, of convmae also sparse_stages masked_dense_stages",
    )
    parser.add_argument(
        "--against",
        choices=("mae",),
        help="hold the sparse arm against an MAE ViT-B/16 step at mask ratio 0.75",
    )
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each arm")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="run every arm through torch.compile")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser


class Arm:
    """A process that runs one arm's steps when told to."""

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
        self.seconds: list[float] = []
        self.peak_bytes = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fcmae.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = self._ask(json.dumps(spec.to_dict()))

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise InputError(
                f"bench step: expected the arm {self.spec.arm} to run, got exit code {self._process.wait()}. "
                "Its own message stands above; take a smaller batch if memory ended."
            )
        return json.loads(answer)

    def step(self) -> None:
        """Time one step, once the threads of the arm before have gone to sleep."""
        time.sleep(PAUSE_SECONDS)
        result = self._ask("step")
        self.seconds.append(result["seconds"])
        self.peak_bytes = result["peak_bytes_above_weights"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(specs: list[StepSpec], steps: int) -> list[dict[str, Any]]:
    """Time `steps` steps of every arm, interleaved.

    Returns:
        One dictionary an arm: the spec, every time in seconds, median, minimum, images per second, the peak
        memory above the weights in bytes, the number of trained parameters and the loss.
    """
    with ExitStack() as stack:
        arms = []
        for spec in specs:
            arms.append(Arm(spec))
            stack.callback(arms[-1].close)
        _require_parity(arms)
        for _ in range(steps):
            for arm in arms:
                arm.step()
        return [
            {
                **arm.spec.to_dict(),
                **arm.facts,
                "seconds": arm.seconds,
                "median_seconds": statistics.median(arm.seconds),
                "min_seconds": min(arm.seconds),
                "images_per_second": arm.spec.batch_size / statistics.median(arm.seconds),
                "peak_bytes_above_weights": arm.peak_bytes,
            }
            for arm in arms
        ]


def _require_parity(arms: list[Arm]) -> None:
    """Refuse to time arms that should compute the same loss and do not."""
    same = [arm for arm in arms if arm.spec.arm.removesuffix(STAGES) in EQUAL_ARMS]
    for arm in same[1:]:
        first, other = same[0].facts["loss"], arm.facts["loss"]
        if not abs(first - other) <= PARITY[arm.spec.precision] * abs(first):
            raise RuntimeError(
                f"bench step: expected the loss of {arm.spec.arm} to be that of {same[0].spec.arm}, "
                f"{first:.6g}, got {other:.6g}; nothing was timed."
            )


def format_table(results: list[dict[str, Any]]) -> str:
    """The results as text; ratios are to the last arm, pair by pair for the time."""
    base = results[-1]
    header = ("mask", "median s", "min s", "img/s", "time ratio", "MiB", "ratio")
    lines = [f"{'arm':<20}" + "".join(f"{title:>11}" for title in header)]
    for result in results:
        pairs = zip(result["seconds"], base["seconds"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        memory = result["peak_bytes_above_weights"]
        cells = (
            f"{result['mask_ratio']:.2f}",
            f"{result['median_seconds']:.3f}",
            f"{result['min_seconds']:.3f}",
            f"{result['images_per_second']:.1f}",
            f"{ratio:.3f}",
            f"{memory / 2**20:.0f}",
            f"{memory / max(1, base['peak_bytes_above_weights']):.3f}",
        )
        lines.append(f"{result['arm']:<20}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run the benchmark, print its table and write its JSON."""
    args = _parser().parse_args(argv)
    default_backbone, patch_size = METHODS[args.method]
    args.backbone = args.backbone or default_backbone
    find_preset(args.backbone)
    require_name("--backend", "an engine of the sparse operations", args.backend, Backend)
    require(args.steps >= 1, f"--steps: expected at least 1, got {args.steps}.")
    require(args.batch_size >= 1, f"--batch-size: expected at least 1, got {args.batch_size}.")
    require(args.threads >= 1, f"--threads: expected at least 1, got {args.threads}.")
    grid = patch_grid((args.image_size, args.image_size), patch_size)
    count_visible(grid[0] * grid[1], args.mask_ratio)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, got none on this machine. Use --device cpu.")
    whole = ["sparse", args.against] if args.against else ["sparse", "masked_dense"]
    stages = ["sparse" + STAGES, "masked_dense" + STAGES] if args.method == "convmae" else []
    names = args.arms or whole + stages
    known = ARMS if args.method == "fcmae" else (*CONVMAE_ARMS, *CONVMAE_STAGE_ARMS, "mae")
    for name in names:
        require_name("--arms", f"an arm of {args.method}", name, known)
    specs = [
        StepSpec(
            arm=name,
            backbone="vit_base_patch16" if name == "mae" else args.backbone,
            batch_size=args.batch_size,
            image_size=args.image_size,
            mask_ratio=MAE_MASK_RATIO if name == "mae" else args.mask_ratio,
            precision=args.precision,
            backend=args.backend if name.removesuffix(STAGES) == "sparse" else "auto",
            device=args.device,
            compile=args.compile,
            threads=args.threads,
            method=args.method,
        )
        for name in names
    ]
    facts = machine()
    hardware = facts["gpu"] if args.device == "cuda" else facts["processor"]
    print(
        f"{args.backbone}, {args.batch_size} images of {args.image_size} px, {args.precision}, "
        f"forward + backward, {args.threads} threads, {hardware}, torch {facts['torch']}",
        flush=True,
    )
    results = []
    # Whole steps and stages are two comparisons, each in one go.
    for is_stages in (False, True):
        group = [spec for spec in specs if spec.arm.endswith(STAGES) is is_stages]
        if group:
            results += measure(group, args.steps)
            print(f"ratios to {group[-1].arm}\n{format_table(results[-len(group) :])}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")
    return 0
