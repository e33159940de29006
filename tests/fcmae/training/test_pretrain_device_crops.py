"""Pretraining on crops that the device makes: those of the loader, exact when interrupted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.data import open_dataset, pretrain_transform
from fcmae.training.engine.checkpoints import Start
from fcmae.training.engine.run import batches_of
from fcmae.training.pretrain import pretrain

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve JPEGs, one of them cut off."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        pixels = RNG.integers(0, 256, (70 + number, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:02}.jpg")
    broken = images / "05.jpg"
    broken.write_bytes(broken.read_bytes()[:3000])
    return images


def test_runs_are_those_of_the_loaders_crops_and_resume(pretrain_config, folder: Path, monkeypatch):
    data: Any = {"source": "folder", "root": str(folder), "repeats": 2}
    on_loader = pretrain(pretrain_config("loader", data=data))
    data["transform_on"] = "device"
    whole = pretrain(pretrain_config("whole", data=data))
    losses = [[line["loss"] for line in events(run, "train")] for run in (on_loader, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # other flips change the first of them by 1e-5
    assert all(0 < line["data_wait"] < 1 for line in events(whole, "train"))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        pretrain(pretrain_config("cut", data=data))
    resumed = pretrain(pretrain_config("cut", data={**data, "workers": 2}))
    assert_same_tensors(last_state(resumed)["model"], last_state(whole)["model"])


def test_crops_are_made_on_the_runs_device(pretrain_config, folder: Path):
    config = pretrain_config(data={"source": "folder", "root": str(folder), "transform_on": "device"})
    dataset = open_dataset(config.data, split="all", labelled=False)
    fabric: Any = SimpleNamespace(device=torch.device("meta"), global_rank=0, world_size=1)
    transform = pretrain_transform(config.data)
    batch = next(batches_of(config, dataset, transform, fabric=fabric, start=Start()))
    assert batch.images.shape == (4, 3, 64, 64) and batch.images.device.type == "meta"
