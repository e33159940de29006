"""Runs an ablation's arms and seeds one after another, and keeps its table up to date."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fcmae.ablation.processes import STOPPED, Execute
from fcmae.ablation.results import collect, write_results
from fcmae.ablation.runs import (
    OUTPUT,
    hold_out_scans,
    is_finished,
    note_failure,
    note_launch,
    prepare,
    read_json,
    require_same_config,
)
from fcmae.ablation.score import METRICS as SCORED
from fcmae.ablation.score import SCORES
from fcmae.ablation.spec import AblationSpec, run_folder
from fcmae.config import FinetuneConfig, PretrainConfig, require
from fcmae.report.ablation_result import AblationResult

Outcome = Literal["done", "skipped", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of a run."""

    name: str
    module: str
    arguments: tuple[str, ...]
    done: bool
    config: PretrainConfig | FinetuneConfig | None = None
    """Saved to its folder before the process starts."""


def run_ablation(
    spec: AblationSpec, *, out: Path, execute: Execute, arms: Sequence[str] | None = None
) -> AblationResult:
    """Run what is not done yet, every seed in all arms before the next, and return the table so far.

    A run that was interrupted goes on from its newest checkpoint, one that failed is tried again, one that is
    done is left alone. `results.json` and `report.html` in `out` are written after every run.

    Args:
        spec: The ablation.
        out: Folder of its runs, `<arm>/seed_<seed>/`.
        execute: How a stage's process is run.
        arms: Those to run; None: all. The table holds all of them.
    Raises:
        InputError: an arm's configuration cannot be used, or a folder holds another one's run.
    """
    check_runs(spec, out)
    runs = runs_in_order(spec, arms)
    if spec.hold_out is not None:
        first = spec.pretrain_config(next(iter(spec.arms)), seed=spec.seeds[0], out=out)
        hold_out_scans(first.data, out, share=spec.hold_out)
    for number, (arm, seed) in enumerate(runs, start=1):
        print(f"[{number}/{len(runs)}] {arm}, seed {seed}", flush=True)
        outcome, reason = run_one(spec, arm, seed, out=out, execute=execute)
        print(f"  {outcome}{f': {reason}' if reason else ''}", flush=True)
        result = collect(spec, out)
        write_results(result, spec, out)
        if outcome == "stopped":
            return result
    return collect(spec, out)


def runs_in_order(spec: AblationSpec, arms: Sequence[str] | None = None) -> list[tuple[str, int]]:
    """(arm, seed) of these arms, or of all: a slow hour of the machine meets every arm of a seed alike.

    Raises:
        InputError: an arm that the ablation has not.
    """
    unknown = [arm for arm in arms or () if arm not in spec.arms]
    require(not unknown, f"--arms: expected of {', '.join(spec.arms)}, got {', '.join(unknown)}.")
    return [(arm, seed) for seed in spec.seeds for arm in arms or spec.arms]


def check_runs(spec: AblationSpec, out: Path) -> None:
    """Refuse before the first step what would be refused in some run later.

    Raises:
        InputError: as `run_ablation`.
    """
    scans = spec.hold_out is not None
    for arm in spec.arms:
        for seed in spec.seeds:
            config = spec.pretrain_config(arm, seed=seed, out=out)
            require_same_config(config, scans=scans, spec=spec.path)
            if spec.finetune is not None:
                tuning = spec.finetune_config(arm, seed=seed, out=out)
                require_same_config(tuning, scans=scans, spec=spec.path)
            if spec.equal is not None and arm in spec.equal.arms:
                train = config.train
                require(
                    train.log_every == 1 and train.steps >= spec.equal.steps,
                    f"{spec.path}, arm {arm}: expected train.log_every of 1 and {spec.equal.steps} or more "
                    f"train.steps for equal.steps, got {train.log_every} and {train.steps}.",
                )


def run_one(
    spec: AblationSpec, arm: str, seed: int, *, out: Path, execute: Execute
) -> tuple[Outcome, str | None]:
    """Bring one run to its end: what became of it, and why it failed or stopped."""
    folder = run_folder(out, arm, seed)
    output, outcome = folder / OUTPUT, "skipped"
    for stage in stages(spec, arm, seed, out=out):
        if stage.done:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        note_launch(folder)
        if stage.config is not None:
            prepare(stage.config)
        before = output.stat().st_size if output.exists() else 0
        code = execute(stage.module, stage.arguments, output)
        if execute.received is not None or code in STOPPED:
            return "stopped", f"{execute.received or 'by a signal'}; the same command goes on."
        if code != 0:
            reason = f"{stage.name}: {_last_words(output, before, code)}"
            note_failure(folder, reason)
            return "failed", reason
        outcome = "done"
    return outcome, None


def stages(spec: AblationSpec, arm: str, seed: int, *, out: Path) -> Iterator[Stage]:
    """The processes of a run in order; whether each is done is looked up when its turn comes."""
    config = spec.pretrain_config(arm, seed=seed, out=out)
    folder = Path(config.run.dir)
    yield Stage(
        name="pretrain",
        module="fcmae",
        arguments=("pretrain", "--config", str(folder / "config.yaml")),
        done=is_finished(folder),
        config=config,
    )
    scored = [metric for metric in spec.metrics if metric in SCORED]
    yield Stage(
        name="score",
        module="fcmae.ablation.score",
        arguments=(str(folder), *scored),
        done=set(scored) <= read_json(folder / SCORES).keys(),
    )
    if spec.finetune is not None:
        tuning = spec.finetune_config(arm, seed=seed, out=out)
        yield Stage(
            name="finetune",
            module="fcmae",
            arguments=("finetune", "--config", str(Path(tuning.run.dir, "config.yaml"))),
            done=is_finished(Path(tuning.run.dir)),
            config=tuning,
        )


def _last_words(output: Path, start: int, code: int) -> str:
    """The last line that a process printed: the command's message, or an exception's."""
    if code < 0:
        return f"killed by signal {-code}; of 9, memory may have ended."
    text = output.read_bytes()[start:].decode("utf-8", "replace") if output.exists() else ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("fcmae: ") if lines else f"exit code {code}."
