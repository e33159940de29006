"""`fcmae evaluate`: encoders under several protocols, frozen or fine-tuned, in one table."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from fcmae.config import FROZEN, TUNED, DataConfig, EvaluateConfig
from fcmae.errors import InputError
from fcmae.evaluation.devices import find_device
from fcmae.evaluation.encoders import LoadedEncoder, load_encoder, random_encoder
from fcmae.evaluation.features import embed_split
from fcmae.evaluation.frozen.score import Images, open_images, score_frozen
from fcmae.evaluation.settings import told_otherwise
from fcmae.evaluation.table import Cell, Score, Table
from fcmae.protocols.tuning import require_tunable, score_tuned


def evaluate(
    config: EvaluateConfig, checkpoints: Sequence[str], *, log: Callable[[str], object] = print
) -> Table:
    """Every checkpoint's encoder under every protocol.

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
    require_tunable(config, encoders, device)
    images = open_images(config)
    cells = []
    for encoder in encoders:
        log(f"{encoder.name}: {encoder.network.backbone}, {encoder.parameters / 1e6:.2f} M parameters")
        otherwise = told_otherwise(encoder.data, config.data)
        if otherwise is not None:
            log(f"{encoder.name}: {otherwise}")
        for labels, score in _scores(config, encoder, images, device, log):
            cell = Cell(
                encoder=encoder.name,
                backbone=encoder.network.backbone,
                parameters=encoder.parameters,
                protocol=score.protocol,
                settings=score.settings,
                accuracy=mean(score.accuracies),
                spread=stdev(score.accuracies) if len(score.accuracies) > 1 else None,
                train_images=score.train_images,
                val_images=score.val_images,
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
    count = Counter(encoder.name for encoder in untrained)
    return loaded + [
        # Else two rows of one name: a backbone with another gate, depth or patch is another network.
        replace(encoder, name=f"{encoder.name} as {like.name}") if count[encoder.name] > 1 else encoder
        for encoder, like in zip(untrained, reversed(first_of.values()), strict=True)
    ]


def _scores(
    config: EvaluateConfig,
    encoder: LoadedEncoder,
    images: Images,
    device: torch.device,
    log: Callable[[str], object],
) -> Iterator[tuple[str, Score]]:
    """(true or shuffled, score) of every protocol, in the order given."""
    embedded = None
    for labels in ("true", "shuffled") if config.shuffled else ("true",):
        for protocol in config.protocol_names:
            if protocol in FROZEN:
                embedded = embedded or [
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
                ]
                train, val = embedded
                shuffled = labels == "shuffled"
                for score in score_frozen(
                    protocol, config, encoder, images, train, val, shuffled=shuffled, device=device
                ):
                    yield labels, score
            elif labels == "true":
                assert protocol in TUNED
                for score in score_tuned(protocol, config, encoder, images, device=device, log=log):
                    yield labels, score


def _describe(data: DataConfig) -> str:
    height, width = data.size
    where = data.source if data.source != "folder" else f"{data.val_root or data.root}"
    return f"{where} at {height} x {width} pixels"
