"""Pretrain a small network by every method for the same time, and write a page that compares them.

Each arm is a configuration that `fcmae pretrain` runs; only its steps are set here, from the speed of a few.
It starts anew every time: the folders it made in an earlier run are deleted first.
"""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import torch

from fcmae.bench.mask_ratios import measure_mask_ratios
from fcmae.config import DataConfig, PretrainConfig
from fcmae.config_io import load_config
from fcmae.convert.files import read_checkpoint
from fcmae.data import eval_transform, evaluation_batches, open_dataset, write_scans
from fcmae.errors import InputError
from fcmae.evaluation.frozen.knn import embed_images, knn_accuracy
from fcmae.evaluation.frozen.probe import probe_accuracy
from fcmae.methods import MSN, Method, from_config
from fcmae.models import Encoder
from fcmae.report.methods import Arm, Scores, write_methods_page
from fcmae.report.samples import read_events
from fcmae.training.engine.seeding import seed_draws
from fcmae.training.pretrain import pretrain

CONFIGS = Path(__file__).parents[1] / "configs"
COLLAPSE = (
    "--model.me_max_weight=0",
    "--model.sinkhorn_iterations=0",
    "--model.share_view=true",
    "--model.anchors=1",
)
ARMS: dict[str, tuple[str, ...]] = {
    "FCMAE, ConvNeXt V2": ("fcmae/convnextv2_atto_demo.yaml",),
    "ConvMAE": ("convmae/convmae_small_demo.yaml",),
    "MAE, ViT": ("mae/vit_tiny_demo.yaml",),
    "MSN, ConvNeXt V2": ("msn/convnextv2_digits.yaml",),
    "MSN, ViT": ("msn/vit_digits.yaml",),
    "MSN, ConvNeXt V2, no me-max, shared view": ("msn/convnextv2_digits.yaml", *COLLAPSE),
}
"""Name -> the configuration's file, and options."""
RATIOS = (0.0, 0.3, 0.5, 0.7)
TRIAL_STEPS = 12


def data_config() -> DataConfig:
    """How all arms see the scans."""
    file = ARMS["FCMAE, ConvNeXt V2"][0]
    return load_config(PretrainConfig, ["--config", str(CONFIGS / file)]).data


def arm_config(options: Sequence[str], *, scans: Path, run_dir: Path) -> PretrainConfig:
    """An arm's configuration on the scans' folder, writing to `run_dir` from the first step."""
    file, *changes = options
    config = load_config(PretrainConfig, ["--config", str(CONFIGS / file), *changes])
    data = dataclasses.replace(config.data, source="folder", root=str(scans / "train"))
    run = dataclasses.replace(config.run, dir=str(run_dir))
    return dataclasses.replace(config, data=data, run=run, resume="none")


def with_steps(config: PretrainConfig, steps: int, run_dir: Path) -> PretrainConfig:
    """The configuration with this length; it logs often enough for a collapse to be seen."""
    train = dataclasses.replace(
        config.train,
        steps=steps,
        warmup_steps=min(config.train.warmup_steps, steps // 5),
        checkpoint_every=steps,
        log_every=max(1, steps // 50),
    )
    run = dataclasses.replace(config.run, dir=str(run_dir))
    return dataclasses.replace(config, train=train, run=run)


def trained_encoder(method: Method) -> Encoder:
    """The encoder to evaluate: MSN's is the average."""
    return method.target_encoder if isinstance(method, MSN) else method.encoder


def score(encoder: Encoder, config: PretrainConfig, scans: Path) -> Scores:
    """Accuracies on the held-out scans, from frozen features and the labels of the others."""
    data = dataclasses.replace(config.data, val_root=str(scans / "val"))
    embedded = []
    for split in ("val", "train"):
        dataset = open_dataset(data, split=split, labelled=True)
        batches = evaluation_batches(dataset, eval_transform(data), batch_size=64, workers=0)
        embedded += embed_images(encoder, batches)
    return Scores(knn=knn_accuracy(*embedded), probe=probe_accuracy(*embedded))


def run_arm(
    name: str, options: Sequence[str], *, seconds: float, scans: Path, out: Path
) -> tuple[Arm, Method]:
    """Measure an arm's speed, pretrain it for `seconds`, and score it before and after."""
    folder = out / name.lower().replace(",", "").replace(" ", "_")
    config = arm_config(options, scans=scans, run_dir=folder)
    with (out / "output.txt").open("a") as notes, redirect_stdout(notes):
        trial = pretrain(with_steps(config, TRIAL_STEPS, folder / "trial"))
        speed = median(entry["images_per_second"] for entry in read_events(trial, "train")[2:])
        steps = max(TRIAL_STEPS, round(seconds * speed / config.train.batch_size))
        run_dir = pretrain(with_steps(config, steps, folder))
    seed_draws(config.train.seed)  # as pretraining began
    method = from_config(config.model, config.data)
    before = score(trained_encoder(method), config, scans)
    method.load_state_dict(read_checkpoint(run_dir / "checkpoints" / "newest.pt")["model"])
    log = read_events(run_dir, "train")
    arm = Arm(
        name=name,
        backbone=config.model.backbone,
        parameters=sum(parameter.numel() for parameter in method.encoder.parameters()),
        mask_ratio=config.model.mask_ratio,
        steps=steps,
        seconds=read_events(run_dir, "end")[0]["seconds"],
        images_per_second=median(entry["images_per_second"] for entry in log),
        losses=(log[0]["loss"], log[-1]["loss"]),
        before=before,
        after=score(trained_encoder(method), config, scans),
        collapses=[f"{event['of']} at step {event['step']}" for event in read_events(run_dir, "collapse")],
        config=(run_dir / "config.yaml").read_text(encoding="utf-8"),
    )
    return arm, method


def run_comparison(
    arms: dict[str, tuple[str, ...]], *, seconds: float, out: Path, bench_steps: int = 5
) -> Path:
    """Run every arm and return the page's path; folders of an earlier run in `out` are deleted first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    scans = out / "scans"
    data = data_config()
    counts = write_scans(dataclasses.replace(data, val_fraction=0.3), scans)
    print(f"{counts['train']} scans to train on, {counts['val']} held out; notes go to {out / 'output.txt'}")
    results, encoders = [], {}
    for name, options in arms.items():
        arm, method = run_arm(name, options, seconds=seconds, scans=scans, out=out)
        results.append(arm)
        print(
            f"{name}: {arm.steps} steps in {arm.seconds:.0f} s, "
            f"k-NN {arm.before.knn:.3f} -> {arm.after.knn:.3f}, "
            f"probe {arm.before.probe:.3f} -> {arm.after.probe:.3f}"
            + "".join(f"; collapse: {line}" for line in arm.collapses),
            flush=True,
        )
        encoder = method.encoder
        encoders.setdefault(type(encoder).__name__, (encoder, encoder.max_stride))
    times = measure_mask_ratios(
        encoders, ratios=RATIOS, batch_size=32, image_size=data.size, steps=bench_steps
    )
    page = out / "report.html"
    write_methods_page(page, arms=results, counts=counts, budget=seconds, ratios=RATIOS, times=times)
    print(f"The page: {page.resolve()}")
    return page


def main() -> int:
    """Run all arms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="default: runs/methods")
    parser.add_argument("--seconds", type=float, default=60.0, help="pretraining time of each arm")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    try:
        run_comparison(ARMS, seconds=arguments.seconds, out=arguments.out)
    except InputError as error:
        print(f"compare_methods: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
