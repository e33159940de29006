"""How well a detector does on annotated images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric

from fcmae.config import DetectConfig, PixelConfig
from fcmae.data import Batch, ImageDataset, evaluation_batches
from fcmae.downstream.detection.data.dataset import Example
from fcmae.downstream.detection.detect import Detections, detect
from fcmae.downstream.detection.metrics import AveragePrecision
from fcmae.downstream.detection.model import Detector
from fcmae.downstream.pixels import normalised

Noting = Callable[[Iterable[Batch]], Iterator[Batch]]


def evaluate(
    fabric: Fabric,
    detector: Detector,
    dataset: ImageDataset[Example],
    config: DetectConfig,
    *,
    categories: tuple[tuple[int, str], ...],
    noting: Noting = iter,
    per_class: bool = False,
) -> dict[str, float]:
    """COCO's metrics, see `AveragePrecision`.

    Each process looks at every `world_size`-th image, at the run's precision, and all get the numbers of the
    whole; the detector's mode is put back.

    Args:
        fabric: The run's Fabric.
        detector: Not wrapped by Fabric.
        dataset: Annotated images.
        config: How images are read, and how instances are detected.
        categories: (id, name) of each class.
        noting: Takes note of unreadable images.
        per_class: Also the AP of each class.
    """
    metric = AveragePrecision(categories, per_class=per_class)
    share = dataset.subset(range(fabric.global_rank, len(dataset), fabric.world_size))
    for example, found in detections(fabric, detector, share, config, noting=noting):
        metric.add(found, example.target)
    return metric.compute()


def detections(
    fabric: Fabric,
    detector: Detector,
    dataset: ImageDataset[Example],
    config: DetectConfig,
    *,
    noting: Noting = iter,
) -> Iterator[tuple[Example, Detections]]:
    """Every readable image, normalised, with what is found in it; see `evaluate`."""
    was_training = detector.training
    detector.eval()
    data = config.data
    batches: Iterator[Batch[Any]] = evaluation_batches(
        dataset, _Normalise(data), batch_size=1, workers=data.workers, timeout=data.timeout
    )
    try:
        for batch in noting(batches):
            images, targets, sizes, numbers = batch.images
            example = Example(images[0], targets[0], sizes[0], numbers[0])
            with fabric.autocast(), torch.no_grad():
                found = detect(detector, fabric.to_device(example.image), config.test)
            yield example, found
    finally:
        detector.train(was_training)


@dataclass(frozen=True)
class _Normalise:
    pixels: PixelConfig

    def __call__(self, example: Example) -> Example:
        return example._replace(image=normalised(example.image, self.pixels))
