"""Training of Mask R-CNN: a pretrained encoder and annotated images in, a detector out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from fcmae.config import DetectConfig
from fcmae.config_io import to_dict
from fcmae.data import Batch, ImageDataset
from fcmae.downstream.detection.data.dataset import Example, open_instances
from fcmae.downstream.detection.data.transforms import LargeScaleJitter
from fcmae.downstream.detection.evaluate import evaluate
from fcmae.downstream.detection.model import Detector
from fcmae.downstream.pyramid import create_pyramid
from fcmae.errors import InputError
from fcmae.masking import BatchPart
from fcmae.training.engine.checkpoints import Start, find_start
from fcmae.training.engine.devices import launch_fabric
from fcmae.training.engine.loop import Event, Running, Task, train
from fcmae.training.engine.run import batches_of
from fcmae.training.engine.seeding import seed_draws

KIND = "detect"
Categories = tuple[tuple[int, str], ...]


class Detecting(Task):
    """A detector that learns from annotated images, and is evaluated on others.

    Args:
        detector: Mask R-CNN.
        config: Of the run.
        validation: What is evaluated on.
        categories: (id, name) of each class.
        left_out: See `Task`.
    Attributes:
        metrics: Of the last evaluation; see `train_detector`.
    """

    kind = KIND

    def __init__(
        self,
        detector: Detector,
        config: DetectConfig,
        *,
        validation: ImageDataset[Example],
        categories: Categories,
        left_out: Sequence[str] = (),
    ) -> None:
        settings = config.train
        super().__init__(
            detector,
            lr_scale=detector.layer_scale(settings.layer_decay, kind=settings.layer_decay_type),
            events=[Event(every=settings.evaluate_every, call=self._evaluate)],
            left_out=left_out,
        )
        self._detector, self._config = detector, config
        self._validation, self._categories = validation, categories
        self.metrics: dict[str, float] = {}

    def begin(self, fabric: Fabric, state: Mapping[str, Any]) -> None:
        """Go on from the metrics saved."""
        self.metrics = dict(state.get("metrics", {}))

    def loss(
        self, network: nn.Module, batch: Batch[Any], *, step: int, part: BatchPart
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The sum of Mask R-CNN's losses, and each of them for the log."""
        images, targets, sizes, _ = batch.images  # of each its own; the images are one tensor
        losses = network(images, sizes, targets)
        return torch.stack(list(losses.values())).sum(), {
            name: loss.detach() for name, loss in losses.items()
        }

    def state(self) -> dict[str, Any]:
        """What builds the network again, the classes and the last metrics."""
        return {
            "pyramid": self._detector.pyramid.description,
            "categories": [list(category) for category in self._categories],
            "metrics": self.metrics,
        }

    def _evaluate(self, running: Running, step: int) -> None:
        self.metrics = evaluate(
            running.fabric,
            self._detector,
            self._validation,
            self._config,
            categories=self._categories,
            noting=lambda batches: running.bad_images.noting(batches, step=step),
        )
        running.log.write("eval", step=step, **self.metrics)


def train_detector(config: DetectConfig) -> dict[str, float]:
    """Train Mask R-CNN as `config` says, and return the last evaluation's metrics.

    Resuming works as in pretraining.

    Args:
        config: Annotated images, detector, optimiser and run folder; see `fcmae.config`.
    Returns:
        COCO's metrics on the validation images, see `AveragePrecision`.
    Raises:
        InputError: as `pretrain`; the weights do not fit, or annotations are broken.
    Paper: He et al. 2017, Mask R-CNN.
    """
    if config.run.strategy == "fsdp":
        raise InputError(
            "run.strategy: expected auto or ddp for detection, whose evaluation needs the whole network in "
            "one process, got fsdp. Use auto."
        )
    fabric = launch_fabric(config.run, config.train)
    start = find_start(config.resume, config.run.dir, kind=KIND, config=to_dict(config))
    dataset, annotations = open_instances(config.data, split="train")
    validation, others = open_instances(config.data, split="val")
    require_same_categories(start, annotations.categories)

    seed_draws(config.train.seed)  # the initial weights
    detector = build_detector(config, start.state or None, classes=len(annotations.categories))
    task = Detecting(
        detector,
        config,
        validation=validation,
        categories=annotations.categories,
        left_out=list(dict.fromkeys([*annotations.told(), *others.told()])),  # both may be of one file
    )
    transform = LargeScaleJitter(
        size=config.data.size, scale=config.data.scale, flip=config.data.flip, pixels=config.data
    )
    batches = batches_of(config, dataset, transform, fabric=fabric, start=start)
    train(task, batches, config, fabric=fabric, start=start, images=len(dataset))
    return task.metrics


def build_detector(config: DetectConfig, state: Mapping[str, Any] | None, *, classes: int) -> Detector:
    """The detector of a configuration, its encoder pretrained where there are weights.

    Args:
        config: Of the run.
        state: A checkpoint of the run, which tells its sizes; its weights are not loaded. None: a new run.
        classes: Classes, the background not counted.
    Raises:
        InputError: as `create_pyramid`.
    """
    model = config.model
    pyramid = create_pyramid(
        model.backbone,
        weights=None if state is not None else model.weights,
        description=None if state is None else state["pyramid"],
        image_size=config.data.size,
        in_chans=config.data.in_chans,
        drop_path=model.drop_path,
        num_heads=model.num_heads,
        window_size=model.window_size,
        global_blocks=model.global_blocks,
        positions=model.positions,
    )
    return Detector(pyramid, model, classes=classes)


def require_same_categories(start: Start, categories: Categories) -> None:
    """Raise InputError where a resumed detector knows other categories."""
    saved = tuple((category, name) for category, name in start.state.get("categories", categories))
    if saved != categories:
        raise InputError(
            f"resume: expected the {len(saved)} categories of {start.path}, got {len(categories)} that are "
            "not the same. Restore data.annotations, or use another --run.dir to start anew."
        )
