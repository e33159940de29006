"""Devices and precision, by Lightning Fabric."""

import atexit
from datetime import timedelta
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.accelerators import ACCELERATOR_REGISTRY
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.precision import MixedPrecision
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.strategy import Strategy
from torch import Tensor, distributed, nn

from fcmae.config import RunConfig, TrainConfig
from fcmae.errors import InputError
from fcmae.training.engine.logs import require_loggers
from fcmae.training.engine.sharding import shard


class AutocastOnly(MixedPrecision):
    """bf16 autocast that leaves the inputs alone.

    Fabric's own would round the images to 8 bits of precision, and they are the targets too.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def compiled(module: nn.Module, *, enabled: bool) -> nn.Module:
    """`module` through torch.compile, sharing its parameters; or itself."""
    return cast(nn.Module, torch.compile(module)) if enabled else module


def launch_fabric(run: RunConfig, train: TrainConfig) -> Fabric:
    """The launched Fabric of a run: its devices, its processes and its precision.

    Raises:
        InputError: the accelerator's name is unknown, this machine lacks it or that many of it, other
            numbers of processes were started than configured, or a logger is not installed.
    """
    require_loggers(run.loggers)
    known = (*ACCELERATOR_REGISTRY.available_accelerators(), "auto")
    if run.accelerator not in known:
        raise InputError(
            f"run.accelerator: expected one of {', '.join(sorted(known))}, got {run.accelerator}."
        )
    _require_started(run)
    try:
        fabric = _fabric(run, precision="32-true")
        if train.precision == "bf16":
            device = fabric.device.type
            fabric = _fabric(run, plugins=AutocastOnly("bf16-mixed", device))
        fabric.launch()
    # Fabric reports missing hardware by several exception types, with a sentence each.
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"run.accelerator: expected hardware for {run.devices} x {run.accelerator}, got: {reason} "
            "Use --run.accelerator=cpu --run.devices=1."
        ) from error
    if distributed.is_initialized():
        # Fabric leaves the group for NCCL only. gloo's threads, if they outlive the interpreter, can abort.
        atexit.register(_leave_processes)
    return fabric


def _leave_processes() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _fabric(run: RunConfig, **precision: Any) -> Fabric:
    timeout, processes = timedelta(seconds=run.timeout), run.devices * run.nodes
    strategy: str | Strategy = "auto"
    if run.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            shard, data_parallel_size=processes, tensor_parallel_size=1, timeout=timeout
        )
    elif run.strategy == "ddp" or processes > 1:
        strategy = DDPStrategy(timeout=timeout)
    return Fabric(
        accelerator=run.accelerator,
        strategy=strategy,
        devices=run.devices,
        num_nodes=run.nodes,
        **precision,
    )


def shared_out(fabric: Fabric, module: nn.Module) -> nn.Module:
    """`module`, under FSDP with its weights shared out over the processes as the run's are; in place.

    Args:
        fabric: Launched.
        module: Holds its whole weights in every process; from now on all must call it together.
    """
    strategy = fabric.strategy
    return shard(module, strategy.device_mesh) if isinstance(strategy, ModelParallelStrategy) else module


def started_by_fabric(fabric: Fabric) -> bool:
    """Whether Fabric's first process of this node started this one; not the user, torchrun or Slurm."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and fabric.local_rank > 0


def _require_started(run: RunConfig) -> None:
    """Raise InputError where torchrun or Slurm started another number of processes than the run has.

    Without this, each of several would make the whole run by itself, in the same folder.
    """
    # As Fabric chooses.
    launcher = next((kind for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)
    if launcher is None:
        if run.nodes > 1:
            raise InputError(
                f"run.nodes: expected torchrun or srun to start the processes of {run.nodes} nodes, got "
                "neither. Start the same command by one of them on every node, or set --run.nodes=1."
            )
        return
    try:
        started = launcher().world_size()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"run.nodes: expected Slurm's variables for each node, got: {reason}") from error
    if started != run.devices * run.nodes:
        raise InputError(
            f"run.devices: expected as many processes as were started, got {run.devices} x {run.nodes} nodes "
            f"for {started}. Set --run.devices and --run.nodes to those of the launcher."
        )


class LossOf(nn.Module):
    """A pretraining method as a module that returns the loss and the further scalars of its log.

    Fabric and DDP take apart what a forward pass returns, and cannot do so with a frozen dataclass.

    Args:
        method: As `fcmae.create_method` returns it.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Any, visible_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of images [B, C, H, W], or of views, under their masks, and scalars for the log."""
        out = self.method(images, visible_ids=visible_ids)
        return out.loss, out.logs
