"""Folders of coloured noise whose classes differ in colour, and runs of networks of a few thousand weights.

For the conftest.py of a folder, which imports the fixtures, and for its tests.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.config import (
    ConvMAEConfig,
    DataConfig,
    FCMAEConfig,
    MAEConfig,
    ModelConfig,
    MSNConfig,
    PretrainConfig,
)
from fcmae.config_io import to_dict
from fcmae.methods import MSN, Method, from_config
from fcmae.training.engine.checkpoints import save_checkpoint

MODELS: dict[str, ModelConfig] = {
    "convnextv2": FCMAEConfig(
        backbone="convnextv2_atto",
        depths=(1, 1, 1, 1),
        dims=(4, 4, 8, 8),
        decoder_dim=8,
        stem_stride=1,
        patch_size=8,
    ),
    "convmae": ConvMAEConfig(
        backbone="convmae_small",
        depths=(1, 1, 1),
        dims=(4, 4, 8),
        num_heads=2,
        decoder_dim=8,
        decoder_depth=1,
        decoder_heads=1,
    ),
    "vit": MAEConfig(
        backbone="vit_tiny_patch8",
        depths=(1,),
        dims=(8,),
        num_heads=2,
        decoder_dim=8,
        decoder_depth=1,
        decoder_heads=1,
    ),
    "msn": MSNConfig(
        backbone="vit_tiny_patch8",
        depths=(1,),
        dims=(8,),
        num_heads=2,
        focal_views=1,
        focal_size=16,
        prototypes=8,
        hidden_dim=8,
        output_dim=4,
    ),
}


def save_run(folder: Path, model: ModelConfig, data: DataConfig) -> Method:
    """A run's folder as pretraining leaves it, and its method; MSN's two networks differ."""
    torch.manual_seed(1)
    method = from_config(model, data)
    if isinstance(method, MSN):
        for weight in method.encoder.parameters():
            torch.nn.init.normal_(weight)
    config = to_dict(PretrainConfig(data=data, model=model))
    state = {"kind": "pretrain", "config": config, "model": method.state_dict()}
    save_checkpoint(folder / "checkpoints", state, step=1, keep=1)
    return method


RUN = "run"
"""In the arguments of a test: a saved run."""


@pytest.fixture(autouse=True)
def as_users_run() -> Iterator[None]:
    """Without torch's deterministic mode, which the commands do not need; on one thread: tiny networks."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """(name, classes=3, images=8) -> a folder of PNGs, one subfolder a class."""

    def make(name: str = "images", *, classes: int = 3, images: int = 8) -> Path:
        for label in range(classes):
            folder = tmp_path / name / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                noise = np.random.default_rng(100 * label + number).integers(0, 200, (36, 36, 3))
                noise[..., label % 3] += 55
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number:02}.png")
        return tmp_path / name

    return make


@pytest.fixture
def folder_data(image_folder: Callable[..., Path]) -> DataConfig:
    """24 images of 3 classes, a quarter of them held out, 32 px."""
    return DataConfig(
        root=str(image_folder()), val_fraction=0.25, image_size=32, workers=0, crop_scale=(0.9, 1.0)
    )
