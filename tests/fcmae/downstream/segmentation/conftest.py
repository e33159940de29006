"""Runs of seconds: a network of five blocks on six photographs, in crops of 64 px."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from downstream_encoders import SIZES, encoder_weights

from fcmae.config import DownstreamTrainConfig, RunConfig, SegmentConfig, SegmentDataConfig, SegmenterConfig
from fcmae.downstream.samples import write_samples

SegmentFactory = Callable[..., SegmentConfig]


@pytest.fixture
def as_users_run() -> Iterator[None]:
    """Without torch's deterministic mode, which the loop does not need; on one thread: tiny networks."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and labels/ of six."""
    folder = tmp_path_factory.mktemp("photographs")
    write_samples(folder, 6)
    return folder


@pytest.fixture
def segment_config(tmp_path: Path, photographs: Path) -> SegmentFactory:
    """(name, backbone=..., data={...}, model={...}, run={...}, **train) -> a run of four steps."""

    def make(
        name: str = "run",
        *,
        backbone: str = "convnextv2_atto",
        resume: str = "auto",
        data: Any = (),
        model: Any = (),
        run: Any = (),
        **train: Any,
    ) -> SegmentConfig:
        weights = tmp_path / f"{backbone}.pth"
        if not weights.exists():
            torch.save({"state_dict": encoder_weights(backbone)}, weights)
        images = SegmentDataConfig(
            source="folder",
            root=str(photographs / "images"),
            labels=str(photographs / "labels"),
            val_fraction=0.3,
            image_size=64,
            resize=None,
            workers=0,
        )
        segmenter = SegmenterConfig(
            backbone=backbone,
            weights=str(weights),
            num_heads=SIZES[backbone].get("num_heads"),
            drop_path=0.2,
            head_dim=8,
            auxiliary_dim=4,
        )
        train_config = DownstreamTrainConfig(
            steps=4,
            batch_size=2,
            base_lr=0.1,
            warmup_steps=1,
            checkpoint_every=2,
            evaluate_every=2,
            log_every=1,
            layer_decay=0.8,
        )
        return SegmentConfig(
            data=replace(images, **dict(data)),
            model=replace(segmenter, **dict(model)),
            train=replace(train_config, **train),
            run=RunConfig(dir=str(tmp_path / name), accelerator="cpu", **dict(run)),
            resume=resume,
        )

    return make
