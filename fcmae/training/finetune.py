"""Fine-tuning: a pretrained encoder, or random weights, and labelled images in; a classifier out."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from timm.data.mixup import Mixup
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from fcmae.config import FinetuneConfig, FinetuneTrainConfig
from fcmae.config_io import to_dict
from fcmae.data import (
    Batch,
    ImageDataset,
    eval_transform,
    evaluation_batches,
    finetune_transform,
    open_dataset,
)
from fcmae.errors import InputError
from fcmae.masking import BatchPart
from fcmae.training.classifier import build_classifier
from fcmae.training.engine.checkpoints import find_start, require_same_classes
from fcmae.training.engine.devices import launch_fabric, shared_out
from fcmae.training.engine.loop import Event, Running, Task, train
from fcmae.training.engine.optim import layer_scale
from fcmae.training.engine.run import batches_of
from fcmae.training.engine.seeding import seed_draws
from fcmae.training.evaluate import evaluate, with_best


class Finetuning(Task):
    """A classifier that learns from labelled images, and is evaluated on others.

    Args:
        classifier: Images [B, C, H, W] to logits [B, classes].
        config: Of the run.
        validation: What is evaluated on.
        classes: Of the training images, a logit each.
        lr_scale: The factor on the learning rate, from a parameter's name.
    Attributes:
        metrics: Of the last evaluation; see `finetune`.
    """

    kind = "finetune"

    def __init__(
        self,
        classifier: nn.Module,
        config: FinetuneConfig,
        *,
        validation: ImageDataset,
        classes: Sequence[str],
        lr_scale: Callable[[str], float],
    ) -> None:
        evaluation = Event(every=config.train.evaluate_every, call=self._evaluate)
        super().__init__(classifier, lr_scale=lr_scale, events=[evaluation])
        self._config, self._validation, self._classes = config, validation, classes
        self._mixup = build_mixup(config.train, num_classes=len(classes))
        # With mixup the smoothing is in its labels.
        self._criterion = nn.CrossEntropyLoss(
            label_smoothing=0.0 if self._mixup else config.train.label_smoothing
        )
        self._ema: ModelEmaV3 | None = None
        self.metrics: dict[str, float] = {}

    def begin(self, fabric: Fabric, state: Mapping[str, Any]) -> None:
        """Go on from the average and the metrics saved, or let the average begin at the first weights."""
        self.metrics = dict(state.get("metrics", {}))
        if self._config.train.ema_decay is not None:
            self._ema = ModelEmaV3(self.model, decay=self._config.train.ema_decay)
            if "ema" in state:
                self._ema.module.load_state_dict(state["ema"])
            self._ema.module = shared_out(fabric, self._ema.module)

    def loss(
        self, network: nn.Module, batch: Batch, *, step: int, part: BatchPart
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The cross entropy, after mixup and CutMix."""
        images, labels = batch.images, batch.labels
        assert labels is not None
        if self._mixup is not None:
            images, labels = self._mixup(images.clone(), labels)  # which mixes in place
        return self._criterion(network(images).float(), labels), {}

    def after_step(self, step: int) -> None:
        """Let the average follow the weights."""
        if self._ema is not None:
            self._ema.update(self.model)

    def state(self) -> dict[str, Any]:
        """The classes, the last metrics and the average."""
        average = {} if self._ema is None else {"ema": self._ema.module.state_dict()}
        return {"classes": list(self._classes), "metrics": self.metrics, **average}

    def _evaluate(self, running: Running, step: int) -> None:
        """By all processes, each on every `devices`-th image."""
        fabric, settings, data = running.fabric, self._config.train, self._config.data
        rank, devices, count = fabric.global_rank, fabric.world_size, len(self._validation)
        found: dict[str, float] = {}
        networks = {"": self.model} if self._ema is None else {"": self.model, "ema_": self._ema.module}
        for prefix, network in networks.items():
            batches = evaluation_batches(
                self._validation.subset(range(rank, count, devices)),
                eval_transform(data),
                batch_size=settings.batch_size,
                workers=data.workers,
                timeout=data.timeout,
            )
            scores = evaluate(
                fabric,
                network,
                running.bad_images.noting(batches, step=step),
                calls=math.ceil(math.ceil(count / devices) / settings.batch_size),
                image=torch.zeros(1, data.in_chans, *data.size),
            )
            found |= {prefix + name: score for name, score in scores.items()}
        self.metrics = with_best(found, self.metrics, step=step)
        running.log.write("eval", step=step, **self.metrics)


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
    settings = config.train
    fabric = launch_fabric(config.run, settings)
    start = find_start(config.resume, config.run.dir, kind=Finetuning.kind, config=to_dict(config))
    dataset = open_dataset(config.data, split="train", labelled=True)
    validation = open_dataset(config.data, split="val", labelled=True)
    assert dataset.classes is not None
    require_same_classes(start, dataset.classes)

    def say(line: str) -> None:
        if fabric.is_global_zero and not start.state:  # a resumed run's weights are its own
            print(line)

    seed_draws(settings.seed)  # the initial weights
    classifier, depths = build_classifier(
        config.model,
        start.state or config.model.weights,
        num_classes=len(dataset.classes),
        in_chans=config.data.in_chans,
        image_size=config.data.size,
        log=say,
    )
    scale = layer_scale(settings.layer_decay, depths=depths, kind=settings.layer_decay_type)
    task = Finetuning(classifier, config, validation=validation, classes=dataset.classes, lr_scale=scale)
    transform = finetune_transform(
        config.data, rand_augment=settings.rand_augment, random_erasing=settings.random_erasing
    )
    batches = batches_of(config, dataset, transform, fabric=fabric, start=start, repeats=config.data.repeats)
    train(task, batches, config, fabric=fabric, start=start, images=len(dataset))
    return task.metrics


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
