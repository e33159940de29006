"""Training of UPerNet: a pretrained encoder and annotated images in; a segmenter out."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor, nn

from fcmae.config import SegmentConfig
from fcmae.config_io import to_dict
from fcmae.data import Batch, ImageDataset
from fcmae.downstream.pyramid import create_pyramid
from fcmae.downstream.segmentation.dataset import Example, open_label_maps
from fcmae.downstream.segmentation.evaluate import evaluate
from fcmae.downstream.segmentation.metrics import scores
from fcmae.downstream.segmentation.model import Segmenter, pixel_loss
from fcmae.downstream.segmentation.transforms import RandomCrop
from fcmae.errors import InputError
from fcmae.masking import BatchPart
from fcmae.training.engine.checkpoints import find_start
from fcmae.training.engine.devices import launch_fabric
from fcmae.training.engine.loop import Event, Running, Task, train
from fcmae.training.engine.run import batches_of
from fcmae.training.engine.seeding import seed_draws

KIND = "segment"
SHOWN = 5
"""Broken label maps that are named; the number of all is told."""


class Segmentation(Task):
    """A segmenter that learns from annotated images, and is evaluated on others.

    Args:
        model: Images to the logits of every pixel.
        config: Of the run.
        validation: What is evaluated on.
        left_out: See `Task`.
    Attributes:
        metrics: Of the last evaluation; see `train_segmenter`.
    """

    kind = KIND

    def __init__(
        self,
        model: Segmenter,
        config: SegmentConfig,
        *,
        validation: ImageDataset[Example],
        left_out: Sequence[str] = (),
    ) -> None:
        settings = config.train
        super().__init__(
            model,
            lr_scale=model.layer_scale(settings.layer_decay, kind=settings.layer_decay_type),
            events=[Event(every=settings.evaluate_every, call=self._evaluate)],
            left_out=left_out,
        )
        self._config, self._validation, self._pyramid = config, validation, model.pyramid
        self.metrics: dict[str, float] = {}

    def begin(self, fabric: Fabric, state: Mapping[str, Any]) -> None:
        """Go on from the metrics saved."""
        self.metrics = dict(state.get("metrics", {}))

    def loss(
        self, network: nn.Module, batch: Batch[Example], *, step: int, part: BatchPart
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The cross entropy of every pixel, and the auxiliary head's by its weight."""
        example = batch.images
        logits, auxiliary = network(example.image, example.size)
        loss = pixel_loss(logits, example.labels)
        if auxiliary is None:
            return loss, {}
        second = pixel_loss(auxiliary, example.labels)
        return loss + self._config.model.auxiliary_weight * second, {"auxiliary_loss": second.detach()}

    def state(self) -> dict[str, Any]:
        """What the pyramid is made of, and the last metrics."""
        return {"pyramid": self._pyramid.description, "metrics": self.metrics}

    def _evaluate(self, running: Running, step: int) -> None:
        def noted(batches: Any) -> Any:
            return running.bad_images.noting(batches, step=step)

        counts = evaluate(running.fabric, self.model, self._validation, self._config, noted=noted)
        found = scores(counts.cpu())
        best = max(found["mIoU"], self.metrics.get("best_mIoU", 0.0))
        newly = best > self.metrics.get("best_mIoU", -1.0)
        found |= {"best_mIoU": best, "best_mIoU_step": step if newly else self.metrics["best_mIoU_step"]}
        self.metrics = found
        if running.fabric.is_global_zero:
            running.log.write("eval", step=step, **found)


def train_segmenter(config: SegmentConfig) -> dict[str, float]:
    """Train UPerNet as `config` says, and return the last evaluation's metrics.

    Resuming works as in pretraining.

    Args:
        config: Annotated images, encoder, optimiser and run folder; see `fcmae.config`.
    Returns:
        "mIoU", "aAcc" and "mAcc" in [0, 1] on the validation images, see `scores`; "best_mIoU" and its step.
    Raises:
        InputError: as `pretrain`; also where the weights do not fit the backbone, or annotations are broken.
    Paper: Woo et al. 2023, ConvNeXt V2, appendix A.4.
    """
    settings = config.train
    if config.run.strategy == "fsdp":
        raise InputError(
            "run.strategy: expected auto or ddp for segmentation, got fsdp. Use auto, with "
            "train.checkpoint_activations for memory."
        )
    fabric = launch_fabric(config.run, settings)
    synchronised = fabric.world_size > 1 and fabric.device.type == "cuda"
    if settings.batch_size == 1 and not synchronised:
        raise InputError(
            "train.batch_size: expected at least 2, as UPerNet's BatchNorm needs, got 1. "
            "Set --train.batch_size=2."
        )
    start = find_start(config.resume, config.run.dir, kind=KIND, config=to_dict(config))
    dataset, left_out = open_label_maps(config.data, split="train")
    validation, val_left_out = open_label_maps(config.data, split="val")
    told = told_left_out(left_out, "training")
    if config.data.val_root is not None:
        told += told_left_out(val_left_out, "validation")

    seed_draws(settings.seed)  # the initial weights
    model: nn.Module = build_segmenter(config, start.state.get("pyramid"))
    if synchronised:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model, Segmenter)
    task = Segmentation(model, config, validation=validation, left_out=told)
    batches = batches_of(config, dataset, RandomCrop(config=config.data), fabric=fabric, start=start)
    train(task, batches, config, fabric=fabric, start=start, images=len(dataset))
    return task.metrics


def build_segmenter(config: SegmentConfig, description: Mapping[str, Any] | None = None) -> Segmenter:
    """The segmenter of a configuration, its encoder from `model.weights`.

    Args:
        config: Of the run.
        description: Its checkpoint's "pyramid", for a segmenter whose weights are loaded next.
    Raises:
        InputError: as `create_pyramid`.
    """
    model, data = config.model, config.data
    pyramid = create_pyramid(
        model.backbone,
        weights=None if description else model.weights,
        description=description,
        image_size=data.size,
        in_chans=data.in_chans,
        drop_path=model.drop_path,
        num_heads=model.num_heads,
        window_size=model.window_size,
        global_blocks=model.global_blocks,
        positions=model.positions,
    )
    return Segmenter(
        pyramid,
        num_classes=data.num_classes,
        head_dim=model.head_dim,
        auxiliary_dim=model.auxiliary_dim,
    )


def told_left_out(lines: Sequence[str], name: str) -> list[str]:
    """Lines that say how many images have no label map, and which the first are."""
    if not lines:
        return []
    return [
        f"left out {len(lines)} {name} images without a label map:",
        *(f"  {line}" for line in lines[:SHOWN]),
    ]
