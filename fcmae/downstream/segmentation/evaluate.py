"""Validation images segmented and compared with their label maps."""

from collections.abc import Callable, Iterable, Iterator

import torch
from lightning.fabric import Fabric
from torch import Tensor, distributed, nn

from fcmae.config import SegmentConfig
from fcmae.data import Batch, ImageDataset, evaluation_batches
from fcmae.downstream.segmentation.dataset import Example
from fcmae.downstream.segmentation.metrics import count_pixels
from fcmae.downstream.segmentation.whole import class_probabilities

Noted = Callable[[Iterator[Batch[Example]]], Iterable[Batch[Example]]]


def as_it_is(example: Example) -> Example:
    """The transform of evaluation: none, as each scale resizes the image itself."""
    return example


def evaluate(
    fabric: Fabric,
    model: nn.Module,
    dataset: ImageDataset[Example],
    config: SegmentConfig,
    *,
    noted: Noted = lambda batches: batches,
) -> Tensor:
    """Pixels of each class that were given each class, over all images and all processes.

    Every process takes part and sees its share of the images. The model's mode is put back.

    Args:
        fabric: The run's Fabric.
        model: A `Segmenter`, not wrapped by Fabric.
        dataset: Annotated images.
        config: Classes, windows, scales.
        noted: Looks at the batches on their way, to note what could not be read.
    Returns:
        int64 [num_classes, num_classes], see `count_pixels`.
    """
    if fabric.world_size > 1:
        for buffer in model.buffers():  # BatchNorm's averages, where each process has its own
            distributed.broadcast(buffer, src=0)  # whose checkpoints are saved
    was_training = model.training
    model.eval()
    classes = config.data.num_classes
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=fabric.device)
    share = range(fabric.global_rank, len(dataset), fabric.world_size)
    if len(share):
        batches = evaluation_batches(
            dataset.subset(share),
            as_it_is,
            batch_size=1,  # images of different sizes
            workers=config.data.workers,
            timeout=config.data.timeout,
        )
        for batch in noted(batches):
            image, labels = fabric.to_device((batch.images.image[0], batch.images.labels[0]))
            predicted = predict(fabric, model, image, config)
            counts += count_pixels(predicted, labels, num_classes=classes)
    model.train(was_training)
    if fabric.world_size > 1:
        fabric.all_reduce(counts, reduce_op="sum")  # in place
    return counts


def predict(fabric: Fabric, model: nn.Module, image: Tensor, config: SegmentConfig) -> Tensor:
    """The most probable class of every pixel, int64 [H, W]; see `class_probabilities`."""

    def logits_of(images: Tensor) -> Tensor:
        with fabric.autocast():
            return model(images)[0]

    return class_probabilities(logits_of, image, data=config.data, test=config.test).argmax(dim=0)
