"""Runs of a second: a network of four blocks on 64 px digits, batch 4."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fcmae.config import (
    ClassifierConfig,
    DataConfig,
    FCMAEConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    PretrainConfig,
    PretrainTrainConfig,
    RunConfig,
)

DATA = DataConfig(source="digits", image_size=64, workers=0)
MODEL = FCMAEConfig(
    backbone="convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), decoder_dim=16, drop_path=0.2
)
TRAIN = PretrainTrainConfig(
    steps=6, batch_size=4, warmup_steps=2, base_lr=0.05, checkpoint_every=2, log_every=1
)
FINETUNE_TRAIN = FinetuneTrainConfig(
    steps=6,
    batch_size=4,
    warmup_steps=2,
    base_lr=0.05,
    checkpoint_every=2,
    log_every=1,
    evaluate_every=3,
    ema_decay=0.9,
    mixup=0.8,
    cutmix=1.0,
    random_erasing=0.25,
    rand_augment="rand-m9-mstd0.5-inc1",
)


@pytest.fixture(autouse=True)
def _as_users_run() -> Iterator[None]:
    """Without torch's deterministic mode, which the loops do not need; on one thread: tiny networks."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


PretrainFactory = Callable[..., PretrainConfig]
FinetuneFactory = Callable[..., FinetuneConfig]


@pytest.fixture
def pretrain_config(tmp_path: Path) -> PretrainFactory:
    """(name, resume="auto", data={...}, model={...}, **train) -> a run of six steps in tmp_path/name."""

    def make(
        name: str = "run", *, resume: str = "auto", data: Any = (), model: Any = (), **train: Any
    ) -> PretrainConfig:
        return PretrainConfig(
            data=replace(DATA, **dict(data)),
            model=replace(MODEL, **dict(model)),
            train=replace(TRAIN, **train),
            run=RunConfig(dir=str(tmp_path / name), accelerator="cpu", report=False),
            resume=resume,
        )

    return make


@pytest.fixture
def finetune_config(tmp_path: Path) -> FinetuneFactory:
    """As pretrain_config; 3 labelled images a class, a tenth of the digits for validation."""

    def make(
        name: str = "tuned", *, resume: str = "auto", data: Any = (), model: Any = (), **train: Any
    ) -> FinetuneConfig:
        return FinetuneConfig(
            data=replace(DATA, **{"labels_per_class": 3, **dict(data)}),
            model=replace(ClassifierConfig(backbone="convnextv2_atto", drop_path=0.2), **dict(model)),
            train=replace(FINETUNE_TRAIN, **train),
            run=RunConfig(dir=str(tmp_path / name), accelerator="cpu", report=False),
            resume=resume,
        )

    return make
