"""One run: its images, its model, its optimiser and its folder."""

from dataclasses import dataclass, field

from fcmae.config.data import DataConfig
from fcmae.config.model import ClassifierConfig, FCMAEConfig, ModelConfig
from fcmae.config.train import FinetuneTrainConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run's files go, and on what it runs."""

    dir: str = "runs/default"
    """Run folder: config.yaml, log.jsonl, tensorboard/, checkpoints/, reconstructions/."""
    accelerator: str = "auto"
    """Lightning Fabric's name of the hardware: auto, cpu, cuda, mps."""
    devices: int = 1
    """Processes of one node; each has its own device."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    model: ModelConfig = field(default_factory=FCMAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """`auto`: go on from the newest good checkpoint of `run.dir`, or start; `none`: start; or a file."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning run."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """As in pretraining."""
