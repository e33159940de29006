"""Gathers what an ablation's runs have written into one table, its JSON file and its page."""

import dataclasses
import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from fcmae.ablation.runs import RECORD, hold_out_scans, is_finished, read_json, read_log, write_whole
from fcmae.ablation.score import METRICS as SCORED
from fcmae.ablation.score import SCORES
from fcmae.ablation.spec import AblationSpec, EqualArms, run_folder
from fcmae.bench.floors import step_works
from fcmae.config import ConvMAEConfig, FCMAEConfig, PretrainConfig
from fcmae.masking import count_visible, patch_grid
from fcmae.report.ablation import Curve, write_ablation_page
from fcmae.report.ablation_result import (
    AblationResult,
    Agreement,
    RunResult,
    Speed,
    paired_differences,
    summarise,
)

RESULTS, PAGE = "results.json", "report.html"


def collect(spec: AblationSpec, out: Path) -> AblationResult:
    """The ablation as its folders stand now."""
    runs = [read_run(spec, arm, seed, out=out) for arm in spec.arms for seed in spec.seeds]
    counts = None
    if spec.hold_out is not None:
        first = spec.pretrain_config(next(iter(spec.arms)), seed=spec.seeds[0], out=out)
        counts = hold_out_scans(first.data, out, share=spec.hold_out)
    return AblationResult(
        title=spec.title,
        file=str(spec.path),
        arms=spec.arms,
        changes=spec.changes,
        seeds=spec.seeds,
        metrics=spec.metrics,
        runs=runs,
        agreement=None if spec.equal is None else compare_losses(spec, spec.equal, out),
        speed=None if spec.equal is None else compare_speed(spec, spec.equal, runs, out),
        held_out=counts,
    )


def read_run(spec: AblationSpec, arm: str, seed: int, *, out: Path) -> RunResult:
    """What the folder of one run tells."""
    folder = run_folder(out, arm, seed)
    record, log = read_json(folder / RECORD), read_log(folder)
    scores = read_json(folder / SCORES)
    tuned = folder / "finetune"
    scored = {metric for metric in spec.metrics if metric in SCORED}
    done = is_finished(folder) and scored <= scores.keys() and (spec.finetune is None or is_finished(tuned))
    failure = record.get("failure")
    steps = [event for event in log if event["event"] == "train"]
    found: dict[str, Any] = {}
    if done:
        tenth = max(1, len(steps) // 10)
        evaluated = [event for event in read_log(tuned) if event["event"] == "eval"]
        values = {
            "loss": mean(event["loss"] for event in steps[-tenth:]),
            "finetune": evaluated[-1]["accuracy"] if evaluated else None,
            **scores,
        }
        found["metrics"] = {name: values[name] for name in spec.metrics}
        train = spec.pretrain_config(arm, seed=seed, out=out).train
        devices = next(event["devices"] for event in log if event["event"] == "start")
        images = train.batch_size * train.accumulate * devices
        found["step_seconds"] = median(
            images / event["images_per_second"] * (1 - event["data_wait"]) for event in steps
        )
        found["data_wait"] = median(event["data_wait"] for event in steps)
        found["peak_memory_mb"] = max(event["memory_mb"] for event in steps)
        found["parameters"] = next(event["parameters"] for event in log if event["event"] == "start")
    return RunResult(
        arm=arm,
        seed=seed,
        state="done" if done else "failed" if failure else "unfinished",
        error=None if done else failure,
        measured_on=record.get("measured_on", ()),
        **found,
    )


def compare_losses(spec: AblationSpec, equal: EqualArms, out: Path) -> Agreement:
    """How far the losses of two arms are apart over the first steps, for the seeds that got so far."""
    worst = {}
    for seed in spec.seeds:
        a, b = (losses_of(run_folder(out, arm, seed)) for arm in equal.arms)
        first = range(1, equal.steps + 1)
        if all(step in a and step in b for step in first):
            worst[seed] = max(abs(a[step] - b[step]) for step in first)
    return Agreement(arms=equal.arms, steps=equal.steps, tolerance=equal.tolerance, worst=worst)


def losses_of(folder: Path) -> dict[int, float]:
    """Step -> logged loss of a run."""
    return {event["step"]: event["loss"] for event in read_log(folder) if event["event"] == "train"}


def compare_speed(spec: AblationSpec, equal: EqualArms, runs: list[RunResult], out: Path) -> Speed | None:
    """The time of the first of two equal arms as a share of the other's, beside what it should be."""
    times = {(run.arm, run.seed): run.step_seconds for run in runs if run.step_seconds is not None}
    a, b = equal.arms
    ratios = {
        seed: times[a, seed] / times[b, seed]
        for seed in spec.seeds
        if (a, seed) in times and (b, seed) in times
    }
    config = spec.pretrain_config(a, seed=spec.seeds[0], out=out)
    shares = expected_shares(config)
    if not ratios or shares is None:
        return None
    return Speed(arms=equal.arms, ratios=ratios, visible=shares[0], flops=shares[1])


def expected_shares(config: PretrainConfig) -> tuple[float, float | None] | None:
    """The visible share of the cells, and the share of a step's FLOPs when the encoder sees only those.

    None for methods without a masked execution; no FLOPs for networks that are not a preset's.
    """
    model, size = config.model, config.data.size
    if not isinstance(model, FCMAEConfig | ConvMAEConfig):
        return None
    cell = (isinstance(model, ConvMAEConfig) and model.mask_stride) or model.patch_size
    height, width = patch_grid(size, cell)
    cells = height * width
    visible = count_visible(cells, model.mask_ratio)
    own = model.depths or model.dims
    if isinstance(model, FCMAEConfig):
        own = own or model.stem_stride or model.gating != "grn" or model.decoder != "convnext"
    if not isinstance(model, FCMAEConfig) or own or model.decoder_depth != 1:
        return visible / cells, None
    flops = [
        sum(
            work.matrix + work.vector
            for work in step_works(
                model.backbone,
                batch_size=config.train.batch_size,
                visible_patches=seen,
                patches=cells,
                parameters=0,
                in_chans=config.data.in_chans,
                patch_size=cell,
                decoder_dim=model.decoder_dim,
            )
        )
        for seen in (visible, cells)
    ]
    return visible / cells, flops[0] / flops[1]


def write_results(result: AblationResult, spec: AblationSpec, out: Path) -> None:
    """Write `results.json` and the page; readers find the old ones or the new ones."""
    content = {
        **dataclasses.asdict(result),
        "agreement_holds": result.agreement.holds if result.agreement else None,
        "table": [dataclasses.asdict(summary) for summary in summarise(result)],
        "paired_differences": [dataclasses.asdict(found) for found in paired_differences(result)],
    }
    write_whole(out / RESULTS, json.dumps(content, indent=1, allow_nan=False) + "\n")
    curves, configs = [], {}
    for arm in spec.arms:
        folders = [
            run_folder(out, arm, run.seed) for run in result.runs if run.arm == arm and run.state == "done"
        ]
        if folders:
            losses = [losses_of(folder) for folder in folders]
            steps = sorted(set.intersection(*(set(each) for each in losses)))
            means = [mean(each[step] for each in losses) for step in steps]
            curves.append(Curve(name=arm, steps=steps, losses=means))
            configs[arm] = (folders[0] / "config.yaml").read_text(encoding="utf-8")
    write_ablation_page(out / PAGE, result, curves=curves, configs=configs)
