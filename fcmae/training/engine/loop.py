"""The loop of every kind of training; a `Task` says what is trained, and what happens besides."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from fcmae.config_io import to_dict
from fcmae.data import explained
from fcmae.masking import BatchPart
from fcmae.training.engine.checkpoints import Start, checkpoint_folder, save_checkpoint
from fcmae.training.engine.devices import compiled
from fcmae.training.engine.guards import (
    BadImages,
    CollapseGuard,
    LossReading,
    SkippedSteps,
    first_non_finite,
    gradient_norm,
    non_finite,
    require_finite_weights,
)
from fcmae.training.engine.interrupt import StopRequests, stopped
from fcmae.training.engine.logs import AnyBatch, Pace, RunLog, peak_memory_mb
from fcmae.training.engine.optim import (
    build_adamw,
    follow_schedules,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
)
from fcmae.training.engine.run import TrainingConfig, due, open_run
from fcmae.training.engine.seeding import seed_draws
from fcmae.training.engine.sharding import checkpoint_activations, gather_state


@dataclass(frozen=True, kw_only=True)
class Running:
    """The run as an event finds it."""

    fabric: Fabric
    network: nn.Module
    """`Task.network`, wrapped: every process must take part in a call of it."""
    log: RunLog
    bad_images: BadImages


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happens every so many steps: an evaluation, pictures, a look at the features.

    It comes after the step's log line and before its checkpoint, and its time is not counted as training.
    Every process calls it, since a network whose weights are shared out (FSDP) works only where all of them
    use it. What is to be done once, such as a picture's file, it does where `running.fabric.is_global_zero`;
    the others' `log.write` goes to files of their own. It may draw random numbers, as each step seeds its
    own, and leaves the network in the mode in which it found it.
    """

    every: int
    """Steps between two calls; one follows the last step in any case."""
    call: Callable[[Running, int], None]
    """Takes the run and the number of steps done."""


class Task:
    """What a run trains. A subclass gives `loss` and what else its kind of run does.

    Args:
        model: What is trained and saved, and searched where a value is not finite.
        network: What is compiled, wrapped and called by `loss`: a module around `model`; None: `model`.
        lr_scale: The factor on the learning rate, from a parameter's name.
        events: In the order of their calls.
        left_out: Lines about annotations that are not trained or evaluated on, for the run's log.
    """

    kind: str
    """Of the checkpoints: "pretrain", "finetune"."""

    def __init__(
        self,
        model: nn.Module,
        *,
        network: nn.Module | None = None,
        lr_scale: Callable[[str], float] = lambda name: 1.0,
        events: Sequence[Event] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.network = model if network is None else network
        self.lr_scale = lr_scale
        self.events = events
        self.left_out = left_out

    def begin(self, fabric: Fabric, state: Mapping[str, Any]) -> None:
        """Take up what `state` saved; called once, when `model` has its first weights and is not yet wrapped.

        Args:
            fabric: Launched.
            state: The checkpoint that the run goes on from; empty for a new run.
        """

    def loss(
        self, network: nn.Module, batch: Any, *, step: int, part: BatchPart
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a micro-batch, and detached scalars for the log.

        The global generators are seeded for this micro-batch. A loss that is not finite is computed once more
        to find its origin: the batch stays as it is.

        Args:
            network: `self.network`, as it is or wrapped.
            batch: On the network's device.
            step: Optimiser steps done.
            part: Which part of the step's global batch this is.
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """What belongs to optimiser step `step`, counted from 1: an average of the weights."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides model and optimiser; every process is asked."""
        return {}


def train(
    task: Task,
    batches: Iterator[AnyBatch],
    config: TrainingConfig,
    *,
    fabric: Fabric,
    start: Start,
    images: int,
) -> None:
    """Train as `config` says, from `start` to the last step.

    Args:
        task: What is trained.
        batches: This process' micro-batches from `start` on.
        config: Optimiser, length and folder of the run; written there.
        fabric: Launched.
        start: Where the run begins.
        images: Training images, for the log.
    Raises:
        InputError: a value was not finite, too many images were unreadable, or the disk is full.
        Stopped: a signal asked for it; the steps done are saved.
        ProcessLostError: another process ended or hangs.
    """
    settings, model = config.train, task.model.to(fabric.device)
    rank, devices, accumulate = fabric.global_rank, fabric.world_size, settings.accumulate
    if start.state:
        model.load_state_dict(start.state["model"])
    task.begin(fabric, start.state)
    if settings.checkpoint_activations:
        checkpoint_activations(model)
    network = fabric.setup_module(compiled(task.network, enabled=settings.compile))
    # After the setup, which may have shared the parameters out.
    groups = parameter_groups(model, weight_decay=settings.weight_decay, lr_scale=task.lr_scale)
    adamw = build_adamw(groups, betas=settings.betas, device=fabric.device)
    if start.state:
        load_optimizer_state(adamw, start.state["optimizer"])
    optimizer = cast(Optimizer, fabric.setup_optimizers(adamw))

    with (
        open_run(fabric, config, start, model=model, images=images) as log,
        explained(batches),
        StopRequests() as stop,
    ):
        if task.left_out:
            log.write("left_out", step=start.step, lines=list(task.left_out))
        for line in task.left_out:
            log.say(line)
        bad_images = BadImages(log, limit=config.data.max_bad_images, known=start.state.get("bad_images", ()))
        skipped = SkippedSteps(
            log, model, limit=settings.max_skipped_steps, known=start.state.get("skipped_steps", ())
        )
        collapse, pace = CollapseGuard(log), Pace()
        running = Running(fabric=fabric, network=network, log=log, bad_images=bad_images)
        for step in range(start.step, settings.steps):
            done = step + 1
            lr = follow_schedules(optimizer, settings, step=step, devices=devices)

            loss = 0.0
            for micro in range(accumulate):
                batch = pace.fetch(batches)
                bad_images.note(batch.bad, step=done)
                batch = fabric.to_device(batch)

                place = (step, rank, micro)
                part = BatchPart(micro * devices + rank, accumulate * devices)
                seed_draws(settings.seed, *place)
                with fabric.no_backward_sync(network, enabled=micro + 1 < accumulate):
                    micro_loss, logs = task.loss(network, batch, step=step, part=part)
                    reading = LossReading(fabric, micro_loss, stop=stop.received is not None)
                    fabric.backward(micro_loss / accumulate)
                value, stopping = reading.wait()
                if not math.isfinite(value):
                    seed_draws(settings.seed, *place)
                    with fabric.autocast():
                        again = partial(task.loss, task.network, batch, step=step, part=part)
                        where = first_non_finite(model, batch, run=again)
                    raise non_finite(log, f"a finite loss, got {value}", where, step=done, lr=lr)
                loss += value / accumulate

            norm = gradient_norm(model, clip=settings.clip_grad).item()
            if skipped.allow(norm, step=done, lr=lr):
                optimizer.step()
            optimizer.zero_grad()
            task.after_step(done)

            log.advance(loss=loss)
            if due(done, settings.log_every, settings.steps):
                further = {name: value.item() for name, value in logs.items()}
                memory = peak_memory_mb(fabric.device)
                pace_now = pace.lap(devices=devices)
                log.write(
                    "train",
                    step=done,
                    loss=loss,
                    lr=lr,
                    gradient_norm=norm,
                    **further,
                    **pace_now,
                    memory_mb=memory,
                )
                collapse.note(further, step=done)
            for event in task.events:
                if due(done, event.every, settings.steps):
                    event.call(running, done)
                    pace.restart()
            if stopping or due(done, settings.checkpoint_every, settings.steps):
                require_finite_weights(log, model, step=done, lr=lr)
                parts = {"model": model.state_dict(), "optimizer": optimizer_state(adamw), **task.state()}
                state = {
                    "kind": task.kind,
                    "config": to_dict(config),
                    **gather_state(parts, keep=fabric.is_global_zero),
                    "bad_images": list(bad_images.names),
                    "skipped_steps": skipped.steps,
                }
                if fabric.is_global_zero:
                    folder = checkpoint_folder(Path(config.run.dir))
                    save_checkpoint(folder, state, step=done, keep=settings.keep_checkpoints)
                fabric.barrier()
                pace.restart()
            if stopping and done < settings.steps:
                raise stopped(log, stop, step=done)
