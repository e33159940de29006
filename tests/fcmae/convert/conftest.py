"""Pretraining checkpoints small enough to write in every test."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcmae.config import DataConfig, FCMAEConfig, PretrainConfig
from fcmae.methods import from_config

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "decoder_dim": 16}


def randomise(module: nn.Module) -> None:
    """Weights that matter: at initialisation GRN does nothing and biases are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2 if parameter.ndim == 1 else 0.1, generator=generator)


@pytest.fixture
def make_checkpoint() -> Callable[..., dict[str, Any]]:
    """A function that returns what a pretraining run saves, for any FCMAEConfig fields."""

    def make(*, in_chans: int = 3, **model: Any) -> dict[str, Any]:
        config = PretrainConfig(
            data=DataConfig(source="digits", in_chans=in_chans, image_size=128), model=FCMAEConfig(**model)
        )
        method = from_config(config.model, config.data)
        randomise(method)
        return {
            "format": "fcmae-1",
            "kind": "pretrain",
            "config": dataclasses.asdict(config),
            "step": 10,
            "model": method.state_dict(),
            "optimizer": {},
        }

    return make


@pytest.fixture
def small_checkpoint(make_checkpoint: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A small network that bears the name of one with 1x1 convolutions in timm."""
    return make_checkpoint(backbone="convnextv2_atto", **SMALL)


@pytest.fixture
def small_weights(small_checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """`encoder.*` and `decoder.*` of the small network."""
    return small_checkpoint["model"]


@pytest.fixture
def small_run(tmp_path: Path, small_checkpoint: dict[str, Any]) -> Path:
    """A run folder with checkpoints of steps 9 and 10."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for step in (9, 10):
        torch.save({**small_checkpoint, "step": step}, run / "checkpoints" / f"step_{step:08d}.pt")
    return run
