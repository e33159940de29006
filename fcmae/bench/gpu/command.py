"""`scripts/bench_gpu.py`: its options, and plans small enough for a test."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from fcmae.arguments import OptionParser
from fcmae.bench.gpu.kernels import KernelSettings
from fcmae.bench.gpu.report import render, short_table
from fcmae.bench.gpu.run import Plan, run
from fcmae.bench.gpu.steps import StepCase, StepSettings
from fcmae.config import require
from fcmae.errors import InputError
from sparse_ops import Backend

PROG = "bench_gpu.py"
TINY_BACKBONE = "convnextv2_atto"


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(PROG, __doc__)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--commit", help="of this source tree, where git does not know")
    parser.add_argument("--budget", type=float, default=525.0, help="seconds after which it ends")
    parser.add_argument("--only", choices=("kernels", "steps"), help="leave the other part out")
    parser.add_argument(
        "--sweep", action="store_true", help="instead: every launch configuration of each kernel"
    )
    parser.add_argument(
        "--cases", nargs="+", metavar="TEXT", help="only whole steps whose name holds one of these texts"
    )
    parser.add_argument(
        "--serial", action="store_true", help="start the arms of a case one after another, not together"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the benchmark itself")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu goes with --tiny only")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print a result file as Markdown and end")
    return parser


def tiny_plan(device: str) -> Plan:
    """Every part of the benchmark at sizes at which the figures mean nothing."""
    engine = Backend.TRITON if device == "cuda" else Backend.SCATTER
    stages = ((2, 8), (1, 16))
    return Plan(
        device=device,
        kernels=KernelSettings(
            device=device,
            batch_size=2,
            grid=(3, 3),
            stages=stages,
            repeats=2,
            engine=engine,
            compiled=device == "cuda",
        ),
        steps=StepSettings(device=device, batch_size=2, image_size=64, rounds=2, steps=1, threads=1),
        cases=(
            StepCase(backbone=TINY_BACKBONE, mask_ratio=0.5, compiled=False, arms=("sparse", "masked_dense")),
        ),
        rates={"copy_bytes": 2**16, "gemm": 64},
    )


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for."""
    plan = tiny_plan(args.device) if args.tiny else Plan()
    plan = dataclasses.replace(plan, budget_seconds=args.budget, commit=args.commit)
    if args.only == "kernels" or args.sweep:
        plan = dataclasses.replace(plan, steps=None, kernel_seconds=args.budget, sweep=args.sweep)
    if args.only == "steps":
        plan = dataclasses.replace(plan, kernels=None)
    if args.serial and plan.steps is not None:
        plan = dataclasses.replace(plan, steps=dataclasses.replace(plan.steps, parallel=False))
    if args.cases:
        cases = tuple(case for case in plan.cases if any(text in case.name for text in args.cases))
        known = ", ".join(case.name for case in plan.cases)
        require(bool(cases), f"--cases: expected part of a name, got {' '.join(args.cases)}. Known: {known}.")
        plan = dataclasses.replace(plan, cases=cases)
    return plan


def main(argv: list[str]) -> int:
    """Run the benchmark and print its table last."""
    try:
        return _main(_parser().parse_args(argv))
    except InputError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    if args.render:
        print(render(json.loads(args.render.read_text())), end="")
        return 0
    require(args.out is not None, "--out: expected a folder for the results, got none. Write --out DIR.")
    require(
        not (args.sweep and args.only == "steps"), "--sweep: expected kernels, got --only steps. Drop one."
    )
    require(args.budget > 0, f"--budget: expected seconds above 0, got {args.budget:g}.")
    require(
        args.device == "cuda" or args.tiny,
        "--device: expected cuda, got cpu. Add --tiny: a CPU only tries the benchmark itself.",
    )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, got none on this machine.")
    report, path = run(plan_of(args), args.out)
    print(f"results: {path}\n{short_table(report)}", flush=True)
    return 0
