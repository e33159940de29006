"""From a pretraining checkpoint, a segmenter learns eight photographs by heart."""

from pathlib import Path

import pytest

from fcmae.cli import main
from fcmae.config import SegmentConfig
from fcmae.config_io import load_config
from fcmae.downstream.segmentation.train import train_segmenter

CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run")
def test_eight_images_are_learnt_by_heart(tmp_path: Path) -> None:
    samples, pretrained = tmp_path / "samples", tmp_path / "pretrained"
    assert main(["data", "samples", str(samples), "--count=8"]) == 0
    smoke = CONFIGS / "convmae" / "convmae_small_smoke.yaml"
    data = ["--data.source=folder", f"--data.root={samples / 'images'}", "--data.in_chans=3"]
    run = [f"--run.dir={pretrained}", "--run.accelerator=cpu"]
    assert main(["pretrain", f"--config={smoke}", *data, *run]) == 0
    config = load_config(
        SegmentConfig,
        [
            f"--config={CONFIGS / 'segmentation' / 'convnextv2_atto_samples.yaml'}",
            f"--data.root={samples / 'images'}",
            f"--data.labels={samples / 'labels'}",
            "--model.backbone=convmae_small",
            "--model.num_heads=4",
            f"--model.weights={pretrained}",
            "--train.steps=220",
            f"--run.dir={tmp_path / 'run'}",
            "--run.accelerator=cpu",
        ],
    )
    metrics = train_segmenter(config)
    assert metrics["mIoU"] > 0.9
