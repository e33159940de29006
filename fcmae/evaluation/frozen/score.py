"""Protocols on frozen features: k-NN, a linear probe, and few labels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fcmae.config import EvaluateConfig
from fcmae.errors import InputError
from fcmae.evaluation.encoders import LoadedEncoder
from fcmae.evaluation.features import Embedded, Split, open_split
from fcmae.evaluation.frozen.knn import knn_predict
from fcmae.evaluation.frozen.lars_probe import (
    cached_batches,
    cropped_batches,
    length_of,
    probe_hits,
    train_lars_probe,
)
from fcmae.evaluation.frozen.lowshot import lowshot_accuracy
from fcmae.evaluation.frozen.probe import probe_accuracy
from fcmae.evaluation.frozen.splits import SPLITS, Size, load_or_write
from fcmae.evaluation.table import Score


@dataclass(frozen=True, kw_only=True)
class Images:
    """What every encoder is measured on."""

    train: Split
    val: Split
    lists: list[tuple[Size, float, list[list[int]]]]
    """(size, penalty, the images of each list) of low-shot evaluation."""


def open_images(config: EvaluateConfig) -> Images:
    """Both splits, and the lists of low-shot evaluation where that is wanted.

    Raises:
        InputError: as `open_split` and `load_or_write`.
    """
    train, val = open_split(config.data, "train"), open_split(config.data, "val")
    lists = []
    if "lowshot" in config.protocol_names:
        own, cached = config.lowshot.splits, Path(config.cache, "splits", train.key)
        for size, penalty in _sizes(config):
            folder = cached if own is None else Path(own)
            drawn = [load_or_write(folder, train, size, number=number) for number in range(SPLITS)]
            lists.append((size, penalty, drawn))
    return Images(train=train, val=val, lists=lists)


def _sizes(config: EvaluateConfig) -> Iterator[tuple[Size, float]]:
    for count in config.lowshot.per_class:
        yield Size(per_class=count), config.lowshot.penalty
    if config.lowshot.percent is not None:
        yield Size(percent=config.lowshot.percent), config.lowshot.percent_penalty


def shuffle_labels(labels: Tensor, *, seed: int) -> Tensor:
    """The labels in random order: what a classifier learns from them is worth chance."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def score_frozen(
    protocol: str,
    config: EvaluateConfig,
    encoder: LoadedEncoder,
    images: Images,
    train: Embedded,
    val: Embedded,
    *,
    shuffled: bool,
    device: torch.device,
) -> Iterator[Score]:
    """The columns of one protocol of FROZEN.

    Args:
        protocol: Its name.
        config: Its settings.
        encoder: For the probe on random crops.
        images: The lists of few, and what is cropped.
        train: Features and labels to learn from.
        val: Those to tell.
        shuffled: Learn from shuffled labels.
        device: For the probe by LARS.
    """

    def learnt(labels: Tensor) -> Tensor:
        return shuffle_labels(labels, seed=config.seed) if shuffled else labels

    def score(column: str, settings: str, *accuracies: float, count: int = len(train.labels)) -> Score:
        return Score(
            protocol=column,
            settings=settings,
            accuracies=accuracies,
            train_images=count,
            val_images=len(val.labels),
        )

    everything = (val.features, val.labels, train.features, learnt(train.labels))
    if protocol == "knn":
        neighbours = min(config.knn.neighbours, len(train.labels))
        predicted = knn_predict(
            val.features,
            train.features,
            everything[3],
            neighbours=neighbours,
            temperature=config.knn.temperature,
        )
        settings = f"{neighbours} neighbours by cosine, temperature {config.knn.temperature:g}"
        yield score("k-NN", settings, (predicted == val.labels).double().mean().item())
    elif protocol == "probe" and config.probe.solver == "lbfgs":
        settings = f"logistic regression on standardised features, C {config.probe.strength:g}"
        yield score("probe", settings, probe_accuracy(*everything, strength=config.probe.strength))
    elif protocol == "probe":
        accuracy = _lars_accuracy(config, encoder, images.train, train, everything[3], val, device=device)
        yield score("probe", _lars_settings(config, len(train.labels)), accuracy)
    else:
        for size, penalty, lists in images.lists:
            accuracies, count = [], 0
            for chosen in lists:
                rows = _rows(chosen, train, images.train)
                accuracies.append(
                    lowshot_accuracy(
                        val.features,
                        val.labels,
                        train.features[rows],
                        learnt(train.labels[rows]),
                        penalty=penalty,
                    )
                )
                count = len(rows)
            settings = (
                f"logistic regression on {count} images, mean ± standard deviation of {SPLITS} lists, "
                f"penalty {penalty:g}"
            )
            yield score(str(size), settings, *accuracies, count=count)


def _lars_accuracy(
    config: EvaluateConfig,
    encoder: LoadedEncoder,
    split: Split,
    train: Embedded,
    labels: Tensor,
    val: Embedded,
    *,
    device: torch.device,
) -> float:
    """`labels`: of `train`, shuffled or not."""
    length = length_of(len(labels), config.probe)
    if config.probe.crops:
        of_all = torch.zeros(len(split.names), dtype=torch.int64)  # unreadable images are never seen
        of_all[train.indices] = labels
        batches = cropped_batches(
            encoder.encoder.to(device),
            split,
            of_all,
            config.data,
            length=length,
            epochs=config.probe.epochs,
            at_once=config.batch_size,
            seed=config.seed,
        )
    else:
        batches = cached_batches(train.features, labels, length=length, seed=config.seed)
    probe = train_lars_probe(
        batches,
        width=train.features.shape[1],
        classes=len(split.classes),
        length=length,
        config=config.probe,
        seed=config.seed,
        device=device,
    )
    return probe_hits(probe, val.features, val.labels, device=device)


def _lars_settings(config: EvaluateConfig, images: int) -> str:
    probe = config.probe
    crops = "random crops and flips of each epoch" if probe.crops else "cached features of one centre crop"
    return (
        f"BatchNorm and linear layer by LARS, {probe.epochs} epochs of batch "
        f"{length_of(images, probe).batch_size}, base_lr {probe.base_lr:g}, {crops}"
    )


def _rows(chosen: Iterable[int], train: Embedded, split: Split) -> Tensor:
    """Where the images of a list are among the features."""
    row_of = torch.full((len(split.names),), -1)
    row_of[train.indices] = torch.arange(len(train.indices))
    rows = row_of[torch.tensor(list(chosen))]
    if bool((rows < 0).any()):
        missing = next(index for index in chosen if row_of[index] < 0)
        raise InputError(
            f"lowshot.splits: expected readable images, got an unreadable one: {split.names[missing]}. "
            "Repair or remove it."
        )
    return rows
