"""Pretraining: masked images in, an encoder out."""

import math
from functools import partial
from pathlib import Path
from typing import cast

from torch.optim import Optimizer

from fcmae.config import PretrainConfig
from fcmae.config_io import to_dict
from fcmae.data import open_dataset, training_batches
from fcmae.masking import BatchPart
from fcmae.methods import from_config
from fcmae.training.checkpoints import checkpoint_folder, find_start, save_checkpoint
from fcmae.training.devices import LossOf, compiled, launch_fabric
from fcmae.training.guards import (
    BadImages,
    CollapseGuard,
    LossReading,
    SkippedSteps,
    first_non_finite,
    gradient_norm,
    non_finite,
    require_finite_weights,
)
from fcmae.training.interrupt import StopRequests, stopped
from fcmae.training.logs import Pace, peak_memory_mb
from fcmae.training.optim import (
    build_adamw,
    follow_schedules,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
)
from fcmae.training.run import due, open_run
from fcmae.training.seeding import mask_generator, seed_draws
from fcmae.training.sharding import checkpoint_activations, gather_state


def pretrain(config: PretrainConfig) -> Path:
    """Pretrain as `config` says, and return the run's folder.

    A run that was interrupted at any point goes on from its newest good checkpoint and, on a CPU, ends with
    the weights of the uninterrupted run, bit for bit: every random draw is a function of the seed, the step,
    the process and the micro-batch.

    Which images make a step, their crops and their masks depend on none but the seed and their places in the
    global batch of `batch_size * accumulate * processes` images. So any split of the same global batch gives
    the same loss up to the order of summation, also for a run that is resumed with another split. Not so:
    stochastic depth (`model.drop_path`), drawn by each process; statistics over the images of one forward
    pass (`model.grn_scope=batch`); and MSN with accumulation, which compares the images of a forward pass.

    Args:
        config: Images, method, optimiser and run folder; see `fcmae.config`.
    Returns:
        `config.run.dir`, with config.yaml, log.jsonl, tensorboard/ and checkpoints/.
    Raises:
        InputError: something of the user's cannot be used, a loss was not finite, too many images were
            unreadable, or the disk is full. The last good checkpoint is kept.
    Paper: Woo et al. 2023, ConvNeXt V2, table 8.
    """
    train, run_dir = config.train, Path(config.run.dir)
    fabric = launch_fabric(config.run, train)
    rank, devices = fabric.global_rank, fabric.world_size
    start = find_start(config.resume, run_dir, kind="pretrain", config=to_dict(config))

    dataset = open_dataset(config.data, split="all", labelled=False)
    seed_draws(train.seed)  # the initial weights
    method = from_config(config.model, config.data).to(fabric.device)
    batches = training_batches(
        dataset,
        method.transform(config.data),
        batch_size=train.batch_size,
        seed=train.seed,
        start=start.step * train.accumulate,
        stop=train.steps * train.accumulate,
        workers=config.data.workers,
        rank=rank,
        world_size=devices,
        repeats=config.data.repeats,
        timeout=config.data.timeout,
    )

    if start.state:
        method.load_state_dict(start.state["model"])
    if train.checkpoint_activations:
        checkpoint_activations(method)
    network = LossOf(method)
    loss_of = fabric.setup_module(compiled(network, enabled=train.compile))
    # After the setup, which may have shared the parameters out.
    groups = parameter_groups(method, weight_decay=train.weight_decay)
    adamw = build_adamw(groups, betas=train.betas, device=fabric.device)
    if start.state:
        load_optimizer_state(adamw, start.state["optimizer"])
    optimizer = cast(Optimizer, fabric.setup_optimizers(adamw))

    with open_run(fabric, config, start, model=method, images=len(dataset)) as log, StopRequests() as stop:
        bad_images = BadImages(log, limit=config.data.max_bad_images, known=start.state.get("bad_images", ()))
        collapse = CollapseGuard(log)
        skipped = SkippedSteps(
            log, method, limit=train.max_skipped_steps, known=start.state.get("skipped_steps", ())
        )
        pace = Pace()
        for step in range(start.step, train.steps):
            done = step + 1
            lr = follow_schedules(optimizer, train, step=step, devices=devices)

            loss = 0.0
            for micro in range(train.accumulate):
                batch = pace.fetch(batches)
                bad_images.note(batch.bad, step=done)
                images = fabric.to_device(batch.images)

                place = (step, rank, micro)
                seed_draws(train.seed, *place)
                visible_ids = method.draw_visible_ids(
                    images,
                    mask_generator(train.seed, step),
                    part=BatchPart(micro * devices + rank, train.accumulate * devices),
                )
                with fabric.no_backward_sync(loss_of, enabled=micro + 1 < train.accumulate):
                    micro_loss, logs = loss_of(images, visible_ids)
                    reading = LossReading(fabric, micro_loss, stop=stop.received is not None)
                    fabric.backward(micro_loss / train.accumulate)
                value, stopping = reading.wait()
                if not math.isfinite(value):
                    seed_draws(train.seed, *place)
                    with fabric.autocast():
                        where = first_non_finite(method, images, run=partial(network, images, visible_ids))
                    raise non_finite(log, f"a finite loss, got {value}", where, step=done, lr=lr)
                loss += value / train.accumulate

            norm = gradient_norm(method, clip=train.clip_grad).item()
            if skipped.allow(norm, step=done, lr=lr):
                optimizer.step()
            optimizer.zero_grad()
            method.after_step(done / (train.steps * train.schedule_stretch))

            log.advance(loss=loss)
            if due(done, train.log_every, train.steps):
                further = {name: value.item() for name, value in logs.items()}
                memory = peak_memory_mb(fabric.device)
                pace_now = pace.lap(devices=devices)
                log.write(
                    "train",
                    step=done,
                    loss=loss,
                    lr=lr,
                    gradient_norm=norm if math.isfinite(norm) else None,
                    **further,
                    **pace_now,
                    memory_mb=memory,
                )
                collapse.note(further, step=done)
            if stopping or due(done, train.checkpoint_every, train.steps):
                require_finite_weights(log, method, step=done, lr=lr)
                weights = {"model": method.state_dict(), "optimizer": optimizer_state(adamw)}
                state = {
                    "kind": "pretrain",
                    "config": to_dict(config),
                    **gather_state(weights, keep=fabric.is_global_zero),
                    "bad_images": list(bad_images.names),
                    "skipped_steps": skipped.steps,
                }
                if fabric.is_global_zero:
                    save_checkpoint(checkpoint_folder(run_dir), state, step=done, keep=train.keep_checkpoints)
                fabric.barrier()
                pace.restart()
            if stopping and done < train.steps:
                raise stopped(log, stop, step=done)
    return run_dir
