"""`fcmae ablate`: one training with single differences, over several seeds, in one table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcmae.ablation.spec import AblationSpec, load_spec
from fcmae.arguments import OptionParser
from fcmae.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    """The options of `fcmae ablate`."""
    parser = OptionParser(
        "fcmae ablate",
        "Run every arm and seed of an ablation, skip what is done, and write one table. Further "
        "--section.field=VALUE options change all arms, --finetune.section.field=VALUE their fine-tuning.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configs/ablations/*.yaml")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs (default: runs/ablations/<FILE's name>)"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="run only these; the table holds all")
    parser.add_argument("--dry-run", action="store_true", help="check everything and list what would run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 where a run failed or equal arms disagree; the exit code of a stopped run, 75 or of Ctrl-C 130.
    Raises:
        InputError: the ablation, an arm or the output folder cannot be used.
    """
    parser = build_parser()
    arguments, words = parser.parse_known_args(argv)
    spec = load_spec(arguments.config, _options(words))
    out = arguments.out or Path("runs", "ablations", arguments.config.stem)
    if arguments.dry_run:
        return _dry_run(spec, out, arguments.arms)
    return _run(spec, out, arguments.arms)


def _options(words: Sequence[str]) -> dict[str, str]:
    """`--a.b=value` and `--a.b value` as a mapping."""
    options: dict[str, str] = {}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith("--") or "." not in name or not (equals or left):
            raise InputError(
                f"fcmae ablate: expected --section.field=VALUE, got {name}. fcmae ablate --help lists the "
                "options."
            )
        options[name[2:]] = value if equals else left.pop(0)
    return options


def _dry_run(spec: AblationSpec, out: Path, arms: Sequence[str] | None) -> int:
    from fcmae.ablation.harness import check_runs, runs_in_order, stages

    check_runs(spec, out)
    for arm, seed in runs_in_order(spec, arms):
        left = [stage.name for stage in stages(spec, arm, seed, out=out) if not stage.done]
        differences = " ".join(f"{key}={value}" for key, value in spec.arms[arm].items()) or "the base"
        print(f"{arm}, seed {seed} ({differences}): {', '.join(left) or 'done'}")
    return 0


def _run(spec: AblationSpec, out: Path, arms: Sequence[str] | None) -> int:
    from fcmae.ablation.harness import run_ablation
    from fcmae.ablation.processes import Processes
    from fcmae.ablation.results import PAGE, RESULTS
    from fcmae.report.ablation_text import text_table

    with Processes() as execute:
        result = run_ablation(spec, out=out, execute=execute, arms=arms)
    print(text_table(result))
    print(f"The table: {(out / RESULTS).resolve()}\nThe page: {(out / PAGE).resolve()}")
    if execute.received is not None:
        print(f"fcmae: {execute.received}: stopped and saved. The same command goes on.", file=sys.stderr)
        return 130 if execute.received == "SIGINT" else 75
    disagree = result.agreement is not None and result.agreement.holds is False
    return 1 if disagree or any(run.state == "failed" for run in result.runs) else 0
