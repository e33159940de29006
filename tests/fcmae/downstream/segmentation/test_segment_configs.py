"""The shipped configurations of segmentation load, say their command and repeat no default."""

from pathlib import Path

import pytest
import yaml

from fcmae.config import SegmentConfig
from fcmae.config_io import load_config, load_scaled, to_dict
from fcmae.training.engine.optim import peak_learning_rate

FOLDER = Path(__file__).parents[4] / "configs" / "segmentation"
PAPERS = ("convnextv2_base_ade20k", "convmae_base_ade20k", "vit_base_patch16_ade20k")
FILES = ["--data.root=images", "--data.labels=labels"]


def load(name: str) -> SegmentConfig:
    files = FILES if name in PAPERS else []
    return load_config(SegmentConfig, ["--config", str(FOLDER / f"{name}.yaml"), *files])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs(path: Path) -> None:
    text, config, defaults = path.read_text(), to_dict(load(path.stem)), to_dict(SegmentConfig())
    assert f"fcmae segment train --config configs/segmentation/{path.name}" in text
    for section, fields in yaml.safe_load(text).items():
        for field in fields.keys() - {"source", "backbone"}:
            assert config[section][field] != defaults[section][field], (
                f"{section}.{field} repeats the default"
            )


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_lengths_and_rates(name: str) -> None:
    config = load(name)
    train, devices = config.train, config.run.devices
    assert train.batch_size * devices == 16 and train.steps == 160_000 and train.schedule == "linear"
    assert peak_learning_rate(train, devices=devices) == pytest.approx(1e-4)
    assert config.data.num_classes == 150 and config.data.reduce_zero_label


def test_a_recipe_of_eight_devices_is_scaled_to_one() -> None:
    path = FOLDER / "convnextv2_base_ade20k.yaml"
    config, _ = load_scaled(SegmentConfig, ["--config", str(path), *FILES, "--scale-to=1"])
    assert (config.run.devices, config.train.batch_size, config.train.accumulate) == (1, 2, 8)
