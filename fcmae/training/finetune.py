"""Fine-tuning: a pretrained encoder, or random weights, and labelled images in; a classifier out."""

import math
from pathlib import Path

from timm.data.mixup import Mixup
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from fcmae.config import FinetuneConfig, FinetuneTrainConfig
from fcmae.config_io import to_dict
from fcmae.data import eval_transform, evaluation_batches, finetune_transform, open_dataset, training_batches
from fcmae.errors import InputError
from fcmae.training.checkpoints import checkpoint_folder, find_start, require_same_classes, save_checkpoint
from fcmae.training.classifier import build_classifier
from fcmae.training.devices import compiled, launch_fabric
from fcmae.training.evaluate import evaluate, with_best
from fcmae.training.guards import (
    BadImages,
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
    layer_scale,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
)
from fcmae.training.run import due, open_run
from fcmae.training.seeding import seed_draws
from fcmae.training.sharding import checkpoint_activations


def finetune(config: FinetuneConfig) -> dict[str, float]:
    """Fine-tune as `config` says, and return the last evaluation's metrics.

    Resuming works as in pretraining. The checkpoints are those of timm's model, under its names.

    Args:
        config: Labelled images, classifier, optimiser and run folder; see `fcmae.config`.
    Returns:
        "accuracy" (top-1, in [0, 1]) and "loss" on the validation images, "best_accuracy" and
        "best_accuracy_step", and all but the loss' best again as "ema_..." with `train.ema_decay`.
    Raises:
        InputError: as `pretrain`; also where the weights do not fit the backbone.
    Paper: Woo et al. 2023, ConvNeXt V2, tables 9 to 11.
    """
    train, run_dir = config.train, Path(config.run.dir)
    if config.run.strategy == "fsdp":
        raise InputError(
            "run.strategy: expected auto or ddp for fine-tuning, whose evaluation and average need the whole "
            "network in one process, got fsdp. Use auto, with train.checkpoint_activations for memory."
        )
    fabric = launch_fabric(config.run, train)
    rank, devices = fabric.global_rank, fabric.world_size
    start = find_start(config.resume, run_dir, kind="finetune", config=to_dict(config))

    dataset = open_dataset(config.data, split="train", labelled=True)
    validation = open_dataset(config.data, split="val", labelled=True)
    assert dataset.classes is not None
    require_same_classes(start, dataset.classes)
    mixup = build_mixup(train, num_classes=len(dataset.classes))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.0 if mixup else train.label_smoothing)
    batches = training_batches(
        dataset,
        finetune_transform(config.data, rand_augment=train.rand_augment, random_erasing=train.random_erasing),
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

    seed_draws(train.seed)  # the initial weights
    classifier, depths = build_classifier(
        config.model,
        start.state or config.model.weights,
        num_classes=len(dataset.classes),
        in_chans=config.data.in_chans,
        image_size=config.data.size,
    )
    classifier.to(fabric.device)
    scale = layer_scale(train.layer_decay, depths=depths, kind=train.layer_decay_type)
    groups = parameter_groups(classifier, weight_decay=train.weight_decay, lr_scale=scale)
    adamw = build_adamw(groups, betas=train.betas, device=fabric.device)
    if start.state:
        classifier.load_state_dict(start.state["model"])
        load_optimizer_state(adamw, start.state["optimizer"])
    ema = None if train.ema_decay is None else ModelEmaV3(classifier, decay=train.ema_decay)
    if ema is not None and "ema" in start.state:
        ema.module.load_state_dict(start.state["ema"])
    if train.checkpoint_activations:
        checkpoint_activations(classifier)
    model, optimizer = fabric.setup(compiled(classifier, enabled=train.compile), adamw)
    metrics: dict[str, float] = dict(start.state.get("metrics", {}))

    with (
        open_run(fabric, config, start, model=classifier, images=len(dataset)) as log,
        StopRequests() as stop,
    ):
        bad_images = BadImages(log, limit=config.data.max_bad_images, known=start.state.get("bad_images", ()))
        skipped = SkippedSteps(
            log, classifier, limit=train.max_skipped_steps, known=start.state.get("skipped_steps", ())
        )
        pace = Pace()
        for step in range(start.step, train.steps):
            done = step + 1
            lr = follow_schedules(optimizer, train, step=step, devices=devices)

            loss = 0.0
            for micro in range(train.accumulate):
                batch = pace.fetch(batches)
                bad_images.note(batch.bad, step=done)
                assert batch.labels is not None
                images = batch.images.to(fabric.device, non_blocking=True)
                labels = batch.labels.to(fabric.device, non_blocking=True)

                place = (step, rank, micro)
                seed_draws(train.seed, *place)
                if mixup is not None:
                    images, labels = mixup(images, labels)
                with fabric.no_backward_sync(model, enabled=micro + 1 < train.accumulate):
                    micro_loss = criterion(model(images).float(), labels)
                    reading = LossReading(fabric, micro_loss, stop=stop.received is not None)
                    fabric.backward(micro_loss / train.accumulate)
                value, stopping = reading.wait()
                if not math.isfinite(value):
                    seed_draws(train.seed, *place)
                    with fabric.autocast():
                        where = first_non_finite(classifier, images)
                    raise non_finite(log, f"a finite loss, got {value}", where, step=done, lr=lr)
                loss += value / train.accumulate

            norm = gradient_norm(classifier, clip=train.clip_grad).item()
            if skipped.allow(norm, step=done, lr=lr):
                optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(classifier)

            log.advance(loss=loss)
            if due(done, train.log_every, train.steps):
                memory = peak_memory_mb(fabric.device)
                pace_now = pace.lap(devices=devices)
                log.write(
                    "train",
                    step=done,
                    loss=loss,
                    lr=lr,
                    gradient_norm=norm if math.isfinite(norm) else None,
                    **pace_now,
                    memory_mb=memory,
                )
            if due(done, train.evaluate_every, train.steps):
                if fabric.is_global_zero:
                    networks = {"": classifier} if ema is None else {"": classifier, "ema_": ema.module}
                    found: dict[str, float] = {}
                    for prefix, network in networks.items():
                        val_batches = evaluation_batches(
                            validation,
                            eval_transform(config.data),
                            batch_size=train.batch_size,
                            workers=config.data.workers,
                            timeout=config.data.timeout,
                        )
                        scores = evaluate(fabric, network, bad_images.noting(val_batches, step=done))
                        found |= {prefix + name: score for name, score in scores.items()}
                    metrics = with_best(found, metrics, step=done)
                    log.write("eval", step=done, **metrics)
                metrics = fabric.broadcast(metrics)
                pace.restart()
            if stopping or due(done, train.checkpoint_every, train.steps):
                require_finite_weights(log, classifier, step=done, lr=lr)
                if fabric.is_global_zero:
                    state = {
                        "kind": "finetune",
                        "config": to_dict(config),
                        "classes": list(dataset.classes),
                        "model": classifier.state_dict(),
                        "optimizer": optimizer_state(adamw),
                        "metrics": metrics,
                        "bad_images": list(bad_images.names),
                        "skipped_steps": skipped.steps,
                    }
                    if ema is not None:
                        state["ema"] = ema.module.state_dict()
                    save_checkpoint(checkpoint_folder(run_dir), state, step=done, keep=train.keep_checkpoints)
                fabric.barrier()
                pace.restart()
            if stopping and done < train.steps:
                raise stopped(log, stop, step=done)
    return metrics


def build_mixup(train: FinetuneTrainConfig, *, num_classes: int) -> Mixup | None:
    """timm's mixup and CutMix with label smoothing, drawn once a batch; None with both off.

    Raises:
        InputError: the batch cannot be paired.
    """
    if train.mixup == 0 and train.cutmix == 0:
        return None
    if train.batch_size % 2:
        raise InputError(
            f"train.batch_size: expected an even number with mixup or CutMix, got {train.batch_size}. "
            "Change it, or set train.mixup and train.cutmix to 0."
        )
    return Mixup(
        mixup_alpha=train.mixup,
        cutmix_alpha=train.cutmix,
        label_smoothing=train.label_smoothing,
        num_classes=num_classes,
    )
