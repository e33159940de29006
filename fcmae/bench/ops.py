"""`fcmae bench ops`: each sparse operation on every engine that can run it, on this machine.

Outputs and gradients are first held to the reference's in float64; an engine that differs is named and not
timed, and one that cannot run is listed with its reason. Times are medians, the engines taking turns.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcmae.arguments import OptionParser
from fcmae.bench.op_arms import MASKED_DENSE, Arm, Operation, operations
from fcmae.config import require
from fcmae.errors import InputError
from fcmae.machine import machine
from fcmae.masking import count_visible, patch_grid, random_visible_ids
from sparse_ops import (
    ActiveSites,
    Backend,
    BackendUnavailableError,
    Image,
    MaskedImage,
    SparseImage,
    features_of,
)
from sparse_ops.testing import assert_within_budget

PATCH_SIZE = 32
STRIDE = 4
WARM_UP = 3
ROUNDINGS = 256
"""Of the largest value, by which an engine may miss the reference: sums over many sites in another order."""

DIFFERS = "differs from the reference: "

FOREIGN = (Backend.SPCONV, Backend.MINKOWSKI, Backend.WARPCONVNET)
"""Engines of others: one that fails is listed like one that is missing, and the others are timed."""

ENGINES = (MASKED_DENSE, *(name.value for name in Backend if name is not Backend.AUTO))


PASSES: dict[str, Callable[[Arm], list[Image]]] = {
    "forward": Arm.forward,
    "forward_backward": Arm.forward_backward,
}


def _rows(image: Image) -> Tensor:
    """The features at the active sites, [N, C], outside the graph."""
    if isinstance(image, MaskedImage):
        image = SparseImage.from_dense(image.features, image.sites)
    return features_of(image).detach()


def measure(operation: Operation, engines: Sequence[str], sites: ActiveSites, steps: int) -> list[Arm]:
    """Check each engine against the reference, then time those that may be timed, in turns."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(sites.device)

    x = SparseImage(draw(sites.num_sites, operation.width), sites)
    # A kernel's sums keep the size of their terms.
    parameters = [draw(*s) / math.sqrt(math.prod(s[1:])) for s in operation.shapes]
    out = operation.run(x, Backend.REFERENCE, *parameters)
    assert isinstance(out, SparseImage)
    inputs = (x, parameters, out.map(lambda rows: draw(*rows.shape)))
    truth, reference = (
        [_rows(r) for r in Arm.of(operation, Backend.REFERENCE, *inputs, dtype).forward_backward()]
        for dtype in (torch.float64, torch.float32)
    )
    arms = [Arm.of(operation, engine, *inputs) for engine in engines]
    for name, run in PASSES.items():
        for arm in arms:
            if reason := _refusal(arm, run, reference, truth):
                arm.reasons[name] = reason
        able = [arm for arm in arms if name not in arm.reasons]
        for step in range(WARM_UP + steps):
            for arm in able:
                seconds = _time(run, arm)
                if step >= WARM_UP:
                    arm.seconds.setdefault(name, []).append(seconds)
    return arms


def _refusal(
    arm: Arm, run: Callable[[Arm], list[Image]], reference: list[Tensor], truth: list[Tensor]
) -> str | None:
    """Why a pass of the arm is not timed, in one line; None where it is."""
    try:
        results = run(arm)
    except BackendUnavailableError as error:
        return str(error).splitlines()[-1].strip().removeprefix(f"{arm.engine}: ")
    except Exception as error:
        if arm.engine not in FOREIGN:
            raise
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
    try:
        for index, result in enumerate(results):
            what = "output" if index == 0 else f"gradient {index}"
            bounds = (reference[index], truth[index])
            assert_within_budget(_rows(result), *bounds, what=what, roundings=ROUNDINGS)
    except AssertionError as error:
        return f"{DIFFERS}{error}"
    return None


def _time(run: Callable[[Arm], list[Image]], arm: Arm) -> float:
    on_gpu = arm.sites.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(arm)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _result(arm: Arm) -> dict[str, Any]:
    """An arm as plain values, for JSON: every time and the medians, or the reason for none."""
    return {
        "operation": arm.operation.name,
        "engine": arm.engine,
        **{f"{name}_ms": _median_ms(arm, name) for name in PASSES},
        "seconds": arm.seconds,
        "reasons": arm.reasons,
    }


def _median_ms(arm: Arm, name: str) -> float | None:
    return statistics.median(arm.seconds[name]) * 1e3 if name in arm.seconds else None


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """The times as text, and below them why others have none."""
    lines = [f"{'operation':<16}{'engine':<14}{'forward ms':>12}{'forward + backward ms':>24}"]
    why: dict[tuple[str, str], list[str]] = {}
    for result in results:
        forward, both = (result[f"{name}_ms"] for name in PASSES)
        if forward is not None:
            times = f"{forward:>12.3f}" + (f"{'-':>24}" if both is None else f"{both:>24.3f}")
            lines.append(f"{result['operation']:<16}{result['engine']:<14}{times}")
        for name, reason in list(result["reasons"].items())[:1]:  # what stops the forward stops both
            suffix = " (backward)" if name == "forward_backward" else ""
            why.setdefault((result["engine"], reason), []).append(result["operation"] + suffix)
    lines += ["", "not timed:"] if why else []
    lines += [f"  {engine}, {', '.join(names)}: {reason}" for (engine, reason), names in why.items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser("fcmae bench ops", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=ENGINES, metavar="NAME", help=", ".join(ENGINES)
    )
    parser.add_argument("--steps", type=int, default=20, help="timed runs of each engine")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser


def main(argv: list[str]) -> int:
    """Run the benchmark, print its table and write its JSON; 1 where an engine differs from the reference."""
    args = _parser().parse_args(argv)
    for name in ("channels", "batch_size", "steps"):
        value = getattr(args, name)
        require(value >= 1, f"--{name.replace('_', '-')}: expected at least 1, got {value}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, got none on this machine. Use --device cpu.")
    grid = patch_grid((args.image_size, args.image_size), PATCH_SIZE)
    visible = count_visible(grid[0] * grid[1], args.mask_ratio)
    ids = random_visible_ids(
        args.batch_size,
        grid,
        mask_ratio=args.mask_ratio,
        generator=torch.Generator().manual_seed(0),
        device=torch.device(args.device),
    )
    sites = ActiveSites.from_visible_ids(ids, grid=grid, tile=PATCH_SIZE // STRIDE)
    facts = machine()
    print(
        f"{args.channels} channels, {args.batch_size} images of {args.image_size} px at stride {STRIDE}, "
        f"{visible} of {grid[0] * grid[1]} patches visible, float32, "
        f"{facts['gpu'] if args.device == 'cuda' else facts['processor']}, torch {facts['torch']}",
        flush=True,
    )
    arms = [arm for op in operations(args.channels) for arm in measure(op, args.engines, sites, args.steps)]
    results = [_result(arm) for arm in arms]
    print(format_table(results))
    if args.device == "cpu" and any(r["engine"] == Backend.SPCONV and r["seconds"] for r in results):
        print("\nspconv ran on one thread: with more, its CPU code adds rows up wrongly.")
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        report = {"machine": facts, "settings": settings, "results": results}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    differs = any(reason.startswith(DIFFERS) for result in results for reason in result["reasons"].values())
    return 1 if differs else 0
