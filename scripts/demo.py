"""What `make demo` runs: pretrain without labels, convert, fine-tune with few labels, write a page.

It starts anew every time: the folders it made in an earlier run are deleted first.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TypeVar

from fcmae.bench import step as bench_step
from fcmae.config import FinetuneConfig, PretrainConfig
from fcmae.config_io import load_config
from fcmae.convert.command import convert_checkpoint
from fcmae.convert.files import read_checkpoint
from fcmae.data import open_dataset, write_scans
from fcmae.errors import InputError
from fcmae.report.demo import DemoResult, write_demo_page
from fcmae.report.samples import draw_visible, load_method, picture_rows, read_events, read_images
from fcmae.training.finetune import finetune
from fcmae.training.pretrain import pretrain

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)

CONFIGS = Path(__file__).parents[1] / "configs" / "fcmae"
FOLDERS = ("scans", "pretrain", "finetune_pretrained", "finetune_random")
"""What the demo makes below its output folder, and deletes when it runs again."""
STAGES = 6


class Stages:
    """Announces each stage of the demo and keeps its wall-clock time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"\n[{len(self.seconds) + 1}/{STAGES}] {name}", flush=True)
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def with_folders(config: Config, scans: Path, run_dir: Path) -> Config:
    """The configuration with the scans' folders as its data, writing to `run_dir` from the first step."""
    data = dataclasses.replace(
        config.data, source="folder", root=str(scans / "train"), val_root=str(scans / "val")
    )
    run = dataclasses.replace(config.run, dir=str(run_dir))
    return dataclasses.replace(config, data=data, run=run, resume="none")


def with_seed(config: FinetuneConfig, seed: int, weights: Path | None) -> FinetuneConfig:
    """One fine-tuning run of an arm."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, weights=str(weights) if weights else None),
        train=dataclasses.replace(config.train, seed=seed),
        run=dataclasses.replace(config.run, dir=f"{config.run.dir}/seed_{seed}"),
    )


def run_demo(
    pretrain_config: PretrainConfig,
    finetune_config: FinetuneConfig,
    *,
    out: Path,
    seeds: Sequence[int] = (0, 1, 2),
    bench_steps: int = 5,
) -> Path:
    """Run every stage and return the page's path.

    Args:
        pretrain_config: The pretraining run; its data and folder are replaced by the demo's.
        finetune_config: The recipe of both arms, likewise.
        out: Folder of everything the demo writes; `FOLDERS` in it are deleted first.
        seeds: Of the fine-tuning runs of each arm.
        bench_steps: Timed steps of each execution.
    """
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    stage = Stages()
    scans = out / "scans"

    with stage("write the scans"):
        counts = write_scans(finetune_config.data, scans)
        print(f"{counts['train']} scans to train on and {counts['val']} held out, in {scans}")
        print(f"What the trainings print beside their progress goes to {out / 'output.txt'}")
    pretrain_config = with_folders(pretrain_config, scans, out / "pretrain")

    notes = out / "output.txt"
    with stage("pretrain without labels"), notes.open("w") as file, redirect_stdout(file):
        run_dir = pretrain(pretrain_config)

    with stage("convert the sparse encoder to a dense timm model"):
        conversion = convert_checkpoint(run_dir, force=True)

    accuracies: dict[str, list[float]] = {}
    arms = {"pretrained": conversion.out, "random": None}
    for arm, weights in arms.items():
        config = with_folders(finetune_config, scans, out / f"finetune_{arm}")
        with stage(f"fine-tune from {arm} weights, {len(seeds)} seeds"):
            accuracies[arm] = []
            for seed in seeds:
                with notes.open("a") as file, redirect_stdout(file):
                    metrics = finetune(with_seed(config, seed, weights))
                accuracies[arm].append(metrics["accuracy"])
                print(f"{arm} weights, seed {seed}: accuracy {accuracies[arm][-1]:.3f}", flush=True)

    with stage("measure a step, sparse against masked dense"):
        bench_file = out / "bench.json"
        bench_step.main(
            [
                f"--backbone={pretrain_config.model.backbone}",
                f"--batch-size={pretrain_config.train.batch_size}",
                f"--image-size={pretrain_config.data.size[0]}",
                f"--mask-ratio={pretrain_config.model.mask_ratio}",
                f"--steps={bench_steps}",
                f"--json={bench_file}",
            ]
        )

    method, _ = load_method(conversion.checkpoint, read_checkpoint(conversion.checkpoint))
    held_out = open_dataset(pretrain_config.data, split="val", labelled=True)
    _, images, _ = read_images(held_out, pretrain_config.data, count=8)
    visible = draw_visible(method, images, seed=0)
    largest = max(conversion.differences, key=lambda found: found.relative)
    page = out / "report.html"
    result = DemoResult(
        pretrain=pretrain_config,
        finetune=finetune_config,
        images=counts["train"],
        held_out=counts["val"],
        seeds=seeds,
        pretrained=accuracies["pretrained"],
        random=accuracies["random"],
        log=read_events(run_dir, "train"),
        pictures=picture_rows(method, images, visible, pretrain_config.data),
        difference=(largest.absolute, largest.relative),
        bench=json.loads(bench_file.read_text(encoding="utf-8")),
        seconds=stage.seconds,
        configs={
            f"{name}, as it ran": (folder / "config.yaml").read_text(encoding="utf-8")
            for name, folder in (
                ("Pretraining", run_dir),
                ("Fine-tuning from pretrained weights", out / "finetune_pretrained" / f"seed_{seeds[0]}"),
                ("Fine-tuning from random weights", out / "finetune_random" / f"seed_{seeds[0]}"),
            )
        },
    )
    write_demo_page(page, result)
    print(f"\nThe demo took {sum(stage.seconds.values()):.0f} s. Its page: {page.resolve()}")
    return page


def main() -> int:
    """Read the two configurations and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    out = parser.parse_args().out
    try:
        run_demo(
            load_config(PretrainConfig, ["--config", str(CONFIGS / "convnextv2_atto_demo.yaml")]),
            load_config(FinetuneConfig, ["--config", str(CONFIGS / "convnextv2_atto_demo_finetune.yaml")]),
            out=out,
        )
    except InputError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
