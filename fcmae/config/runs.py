"""One run: its images, its model, its optimiser and its folder."""

from dataclasses import dataclass, field
from typing import Literal

from fcmae.config.checks import require
from fcmae.config.data import DataConfig
from fcmae.config.model import ClassifierConfig, FCMAEConfig, ModelConfig
from fcmae.config.train import FinetuneTrainConfig, PretrainTrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run's files go, and on what it runs."""

    dir: str = "runs/default"
    """Run folder: config.yaml, log.jsonl, tensorboard/, checkpoints/, reconstructions/, report.html."""
    accelerator: str = "auto"
    """Lightning Fabric's name of the hardware: auto, cpu, cuda, mps."""
    devices: int = 1
    """Processes of one node; each has its own device."""
    nodes: int = 1
    """Machines. Over 1, start the same command on each, by torchrun or Slurm's srun."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """`auto`: one process, or DDP over several. `fsdp`: weights, gradients and optimiser state are shared out
    over the processes (FSDP2); checkpoints stay the same. Pretraining and fine-tuning."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before it takes them for lost."""
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where numbers and pictures are shown, besides log.jsonl. wandb and trackio are extras of this package;
    `WANDB_MODE=offline` and `wandb offline` keep wandb off the network, trackio stays on this machine."""
    project: str = "fcmae"
    """What wandb and trackio file the run under."""
    report: bool = True
    """Write report.html when the run ends; `fcmae report` writes it at any time."""

    def __post_init__(self) -> None:
        for name in ("devices", "nodes"):
            value = getattr(self, name)
            require(value >= 1, f"run.{name}: expected at least 1, got {value}.")
        require(self.timeout > 0, f"run.timeout: expected a positive time, got {self.timeout:g}.")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    model: ModelConfig = field(default_factory=FCMAEConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """`auto`: go on from the newest good checkpoint of `run.dir`, or start; `none`: start; or a file."""

    def __post_init__(self) -> None:
        every, method = self.train.reconstruct_every, self.model.method
        require(
            every == 0 or method != "msn",
            f"train.reconstruct_every: expected 0 for msn, which paints no pixels, got {every}. "
            "train.diversity_every watches its features.",
        )
        looks = max(every, self.train.diversity_every)
        require(
            looks == 0 or self.run.strategy != "fsdp",
            "train.reconstruct_every and train.diversity_every: expected 0 with run.strategy=fsdp, where no "
            f"process holds the network, got {looks}. fcmae reconstruct and diversity read its checkpoints.",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning run."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """`auto`: go on from the newest good checkpoint of `run.dir`, or start; `none`: start; or a file."""
