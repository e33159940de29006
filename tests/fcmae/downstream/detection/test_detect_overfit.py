"""A detector learns photographs by heart, from a pretraining checkpoint; docs/downstream.md has eight."""

from pathlib import Path

import pytest

from fcmae.cli import main
from fcmae.config import DetectConfig
from fcmae.config_io import load_config
from fcmae.downstream.detection.train import train_detector

CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.mark.slow
def test_four_images_are_learnt_by_heart(tmp_path: Path) -> None:
    samples, pretrained = tmp_path / "samples", tmp_path / "pretrained"
    assert main(["data", "samples", str(samples), "--count=4"]) == 0
    smoke = CONFIGS / "convmae" / "convmae_small_smoke.yaml"
    data = ["--data.source=folder", f"--data.root={samples / 'images'}", "--data.in_chans=3"]
    assert (
        main(["pretrain", f"--config={smoke}", *data, f"--run.dir={pretrained}", "--run.accelerator=cpu"])
        == 0
    )
    config = load_config(
        DetectConfig,
        [
            f"--config={CONFIGS / 'detection' / 'convnextv2_atto_samples.yaml'}",
            f"--data.root={samples / 'images'}",
            f"--data.annotations={samples / 'annotations.json'}",
            "--model.backbone=convmae_small",
            "--model.num_heads=4",
            "--train.base_lr=0.128",
            "--train.steps=150",
            "--train.evaluate_every=150",
            f"--model.weights={pretrained}",
            f"--run.dir={tmp_path / 'run'}",
            "--run.accelerator=cpu",
        ],
    )
    metrics = train_detector(config)
    assert metrics["mask_ap"] > 0.8 and metrics["box_ap"] > 0.8
