"""The shipped configurations of detection load, say their command and hold differences from the defaults."""

from pathlib import Path

import pytest
import yaml

from fcmae.config import DetectConfig
from fcmae.config_io import load_config, load_scaled, to_dict
from fcmae.training.engine.optim import learning_rate, peak_learning_rate

FOLDER = Path(__file__).parents[4] / "configs" / "detection"
PAPERS = {
    # images a step, learning rate, passes over the images with instances or over all
    "convnextv2_base_coco": (32, 1e-4, 36, 117_266),
    "convmae_base_coco": (32, 8e-5, 25, 118_000),
    "vit_base_patch16_coco": (64, 1e-4, 100, 118_000),
}


def load(name: str) -> DetectConfig:
    files = ["--data.root=images", "--data.annotations=train.json"] if name in PAPERS else []
    return load_config(DetectConfig, ["--config", str(FOLDER / f"{name}.yaml"), *files])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs(path: Path) -> None:
    text, config, defaults = path.read_text(), to_dict(load(path.stem)), to_dict(DetectConfig())
    assert f"fcmae detect train --config configs/detection/{path.name}" in text
    for section, fields in yaml.safe_load(text).items():
        for field in fields.keys() - {"source", "backbone"}:
            assert config[section][field] != defaults[section][field], (
                f"{section}.{field} repeats the default"
            )


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_lengths_and_rates(name: str) -> None:
    config, (batch, rate, epochs, images) = load(name), PAPERS[name]
    train, devices = config.train, config.run.devices
    assert train.batch_size * train.accumulate * devices == batch
    assert peak_learning_rate(train, devices=devices) == pytest.approx(rate)
    assert train.steps * batch / images == pytest.approx(epochs, rel=1e-3)


def test_vitdets_rate_falls_at_its_steps() -> None:
    train = load("vit_base_patch16_coco").train

    def at(step: int) -> float:
        return learning_rate(
            step,
            peak=1.0,
            minimum=0.0,
            warmup_steps=train.warmup_steps,
            steps=train.steps,
            schedule=train.schedule,
            milestones=train.milestones,
        )

    assert [at(step) for step in (163_887, 163_890, 177_545, 177_548)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_a_recipe_of_eight_devices_is_scaled_to_one() -> None:
    path = FOLDER / "convnextv2_base_coco.yaml"
    files = ["--data.root=images", "--data.annotations=train.json"]
    config, _ = load_scaled(DetectConfig, ["--config", str(path), *files, "--scale-to=1"])
    assert (config.run.devices, config.train.batch_size, config.train.accumulate) == (1, 4, 8)
