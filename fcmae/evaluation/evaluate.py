"""`fcmae evaluate`: frozen encoders under several protocols, in one table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from fcmae.config import DataConfig, EvaluateConfig
from fcmae.errors import InputError
from fcmae.evaluation.devices import find_device
from fcmae.evaluation.encoders import LoadedEncoder, load_encoder, random_encoder
from fcmae.evaluation.features import Embedded, Split, embed_split, open_split
from fcmae.evaluation.knn import knn_predict
from fcmae.evaluation.lars_probe import lars_probe_accuracy
from fcmae.evaluation.lowshot import lowshot_accuracy
from fcmae.evaluation.probe import probe_accuracy
from fcmae.evaluation.splits import SPLITS, Size, load_or_write
from fcmae.evaluation.table import Cell, Table


@dataclass(frozen=True, kw_only=True)
class Images:
    """What every encoder is measured on."""

    train: Split
    val: Split
    lists: list[tuple[Size, float, list[list[int]]]]
    """(size, penalty, the images of each list) of low-shot evaluation."""


def evaluate(
    config: EvaluateConfig, checkpoints: Sequence[str], *, log: Callable[[str], object] = print
) -> Table:
    """Every checkpoint's frozen encoder under every protocol.

    Args:
        config: Images, protocols and their settings.
        checkpoints: Run folders or files of any format that conversion reads.
        log: Receives what happens on the way.
    Returns:
        A cell an encoder and protocol; written to `config.json` where that is set.
    Raises:
        InputError: no checkpoint, one that cannot be read, images that do not fit, or a file that cannot be
            written.
    """
    if not checkpoints:
        raise InputError(
            "evaluate: expected checkpoints before the options, got none. Name run folders or files."
        )
    device = find_device(config.device)
    encoders = _encoders(config, checkpoints)
    images = _open_images(config)
    cells = []
    for encoder in encoders:
        log(f"{encoder.name}: {encoder.network.backbone}, {encoder.parameters / 1e6:.2f} M parameters")
        train, val = (
            embed_split(
                encoder,
                split,
                config.data,
                cache=Path(config.cache),
                batch_size=config.batch_size,
                device=device,
                log=log,
            )
            for split in (images.train, images.val)
        )
        for labels in ("true", "shuffled") if config.shuffled else ("true",):
            shuffled = labels == "shuffled"
            for found in _run_protocols(config, images, train, val, shuffled=shuffled, device=device):
                protocol, settings, accuracies, count = found
                cell = Cell(
                    encoder=encoder.name,
                    backbone=encoder.network.backbone,
                    parameters=encoder.parameters,
                    protocol=protocol,
                    settings=settings,
                    accuracy=mean(accuracies),
                    spread=stdev(accuracies) if len(accuracies) > 1 else None,
                    train_images=count,
                    val_images=len(val.labels),
                    labels=labels,
                    file=encoder.file,
                    fingerprint=encoder.fingerprint,
                )
                cells.append(cell)
    table = Table(
        data=_describe(config.data),
        train_images=len(images.train.names),
        val_images=len(images.val.names),
        classes=len(images.train.classes),
        largest_class=images.val.labels.bincount().max().item() / len(images.val.labels),
        cells=cells,
    )
    if config.json is not None:
        table.write_json(config.json)
    return table


def shuffle_labels(labels: Tensor, *, seed: int) -> Tensor:
    """The labels in random order: what a classifier learns from them is worth chance."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def _encoders(config: EvaluateConfig, checkpoints: Sequence[str]) -> list[LoadedEncoder]:
    loaded = [
        load_encoder(path, in_chans=config.data.in_chans, num_heads=config.num_heads)
        for path in dict.fromkeys(checkpoints)
    ]
    if not config.random:
        return loaded
    first_of = {repr(encoder.network): encoder for encoder in reversed(loaded)}
    untrained = [
        random_encoder(encoder, seed=config.seed, num_heads=config.num_heads)
        for encoder in reversed(first_of.values())
    ]
    return loaded + untrained


def _open_images(config: EvaluateConfig) -> Images:
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


def _run_protocols(
    config: EvaluateConfig,
    images: Images,
    train: Embedded,
    val: Embedded,
    *,
    shuffled: bool,
    device: torch.device,
) -> Iterator[tuple[str, str, list[float], int]]:
    """(protocol, its settings, accuracies, images that were learnt from)."""

    def learnt(labels: Tensor) -> Tensor:
        return shuffle_labels(labels, seed=config.seed) if shuffled else labels

    everything = (val.features, val.labels, train.features, learnt(train.labels))
    for protocol in config.protocol_names:
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
            accuracy = (predicted == val.labels).double().mean().item()
            yield "k-NN", settings, [accuracy], len(train.labels)
        elif protocol == "probe" and config.probe.solver == "lbfgs":
            settings = f"logistic regression on standardised features, C {config.probe.strength:g}"
            accuracy = probe_accuracy(*everything, strength=config.probe.strength)
            yield "probe", settings, [accuracy], len(train.labels)
        elif protocol == "probe":
            accuracy = lars_probe_accuracy(*everything, config=config.probe, seed=config.seed, device=device)
            yield "probe", _lars_settings(config, len(train.labels)), [accuracy], len(train.labels)
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
                yield str(size), settings, accuracies, count


def _lars_settings(config: EvaluateConfig, images: int) -> str:
    probe = config.probe
    return (
        f"BatchNorm and linear layer by LARS, {probe.epochs} epochs of batch "
        f"{min(probe.batch_size, images)}, base_lr {probe.base_lr:g}, cached features without augmentation"
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


def _describe(data: DataConfig) -> str:
    height, width = data.size
    where = data.source if data.source != "folder" else f"{data.val_root or data.root}"
    return f"{where} at {height} x {width} pixels"
