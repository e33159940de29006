"""Protocols that train the encoder: fine-tuning, and fine-tuning of the last blocks alone."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from fcmae.config import (
    TUNED,
    ClassifierConfig,
    EvaluateConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    RunConfig,
)
from fcmae.config_io import load_config, to_dict
from fcmae.convert import open_source
from fcmae.convert.files import write_weights
from fcmae.errors import InputError
from fcmae.evaluation.encoders import LoadedEncoder, heads_of
from fcmae.evaluation.frozen.score import Images
from fcmae.evaluation.table import Score
from fcmae.models import PRESETS, ConvMAEEncoder, ViTEncoder
from fcmae.training.engine.run import LOADING
from fcmae.training.finetune import finetune
from fcmae.training.freezing import require_blocks

# Fields of the data that change no weight: which images they are, the splits' keys tell.
_PLACES = ("root", "val_root", "labels", *LOADING)
# A recipe's own images, of which it often names the folder on the command line only, are not opened.
_NO_IMAGES = ("--data.source=digits", "--data.root=null", "--data.val_root=null", "--data.labels=null")


def require_tunable(config: EvaluateConfig, encoders: Sequence[LoadedEncoder], device: torch.device) -> None:
    """Raise InputError, before anything is measured, where a run would be refused later.

    Raises:
        InputError: more blocks are to be trained than an encoder has, or another than the first device.
    """
    if device.index and set(config.protocol_names) & set(TUNED):
        raise InputError(
            f"device: expected {device.type} for fine-tuning, which takes the first device, got {device}. "
            f"Set --device={device.type}, and CUDA_VISIBLE_DEVICES to choose one."
        )
    if "partial" in config.protocol_names:
        for encoder in encoders:
            most = max(config.partial.blocks)
            require_blocks(most, depths=encoder.encoder.depths, field="partial.blocks", what=encoder.name)


def score_tuned(
    protocol: str,
    config: EvaluateConfig,
    encoder: LoadedEncoder,
    images: Images,
    *,
    device: torch.device,
    log: Callable[[str], object] = print,
) -> Iterator[Score]:
    """The columns of one protocol of TUNED: the accuracy at the end of a fine-tuning run for each.

    The runs lie in the cache, named by everything that decides their result: an interrupted one goes on, and
    a finished one is not repeated.

    Args:
        protocol: Its name.
        config: Its settings.
        encoder: Where fine-tuning starts.
        images: What it is trained and evaluated on.
        device: To train on.
        log: Receives a line for each run.
    Raises:
        InputError: as `finetune`.
    """
    counts = config.partial.blocks if protocol == "partial" else (None,)
    for blocks in dict.fromkeys(counts):
        run = _run(config, encoder, images, blocks=blocks, device=device)
        folder = Path(run.run.dir)
        log(f"{encoder.name}: {_column(blocks)}, {run.train.steps} steps in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "output.txt").open("a", encoding="utf-8") as file, redirect_stdout(file):
            metrics = finetune(run)
        yield Score(
            protocol=_column(blocks),
            settings=_settings(run, config, blocks),
            accuracies=[metrics["accuracy"]],
            train_images=len(images.train.names),
            val_images=len(images.val.names),
        )


def _run(
    config: EvaluateConfig,
    encoder: LoadedEncoder,
    images: Images,
    *,
    blocks: float | None,
    device: torch.device,
) -> FinetuneConfig:
    recipe = (
        _small_recipe(config, len(images.train.names)) if config.finetune.recipe is None else _read(config)
    )
    model = replace(
        recipe.model,
        backbone=_backbone(encoder),
        num_heads=next(iter(heads_of(encoder.encoder)), None),
        global_pool=recipe.model.global_pool if isinstance(encoder.encoder, ViTEncoder) else None,
        weights=None,
        train_last_blocks=blocks,
    )
    run = replace(recipe, data=config.data, model=model)
    key = _key(run, encoder, images)
    folder = Path(config.cache, "finetuned", key)
    weights = encoder.file or str(_write_random(encoder, Path(config.cache, "finetuned")))
    return replace(
        run,
        model=replace(model, weights=weights),
        run=RunConfig(dir=str(folder), accelerator=device.type),
        resume="auto",
    )


def _small_recipe(config: EvaluateConfig, count: int) -> FinetuneConfig:
    tuning = config.finetune
    batch_size = min(tuning.batch_size, count)
    steps = tuning.epochs * math.ceil(count / batch_size)
    return FinetuneConfig(
        # A small head, as in the papers, does not get off the ground in so short a run.
        model=ClassifierConfig(drop_path=tuning.drop_path, head_init_scale=1.0),
        train=FinetuneTrainConfig(
            steps=steps,
            batch_size=batch_size,
            base_lr=tuning.base_lr,
            warmup_steps=steps // 10,
            layer_decay=tuning.layer_decay,
            seed=config.seed,
            checkpoint_every=max(1, steps // 5),
            keep_checkpoints=1,
            evaluate_every=steps,
        ),
    )


def _read(config: EvaluateConfig) -> FinetuneConfig:
    """A recipe for one device, with as many images a step."""
    assert config.finetune.recipe is not None
    recipe = load_config(FinetuneConfig, ["--config", config.finetune.recipe, *_NO_IMAGES])
    devices = recipe.run.devices * recipe.run.nodes
    return replace(recipe, train=replace(recipe.train, accumulate=recipe.train.accumulate * devices))


def _backbone(encoder: LoadedEncoder) -> str:
    """The preset that fine-tuning asks for: the one that the checkpoint names, or any of the family."""
    named = open_source(encoder.file).config.get("model", {}).get("backbone") if encoder.file else None
    if named is not None or encoder.network.backbone in PRESETS:
        return named or encoder.network.backbone
    return "convmae_base" if isinstance(encoder.encoder, ConvMAEEncoder) else "vit_base_patch16"


def _key(run: FinetuneConfig, encoder: LoadedEncoder, images: Images) -> str:
    """A hash of the weights, the images with their labels, and the recipe."""
    config = to_dict(replace(run, run=RunConfig()))
    data = {name: value for name, value in config["data"].items() if name not in _PLACES}
    splits = [
        [split.key, hashlib.blake2b(split.labels.numpy().tobytes()).hexdigest()]
        for split in (images.train, images.val)
    ]
    facts = [encoder.fingerprint, encoder.file, splits, {**config, "data": data}]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _write_random(encoder: LoadedEncoder, folder: Path) -> Path:
    """Random weights as a file that fine-tuning starts from."""
    path = folder / f"random_{encoder.fingerprint}.safetensors"
    # A classifier's own norm is part of its head.
    weights = {
        f"head.norm.{name.removeprefix('fc_norm.')}"
        if name.startswith("fc_norm.")
        else f"encoder.{name}": tensor
        for name, tensor in encoder.encoder.state_dict().items()
    }
    write_weights(path, weights, metadata={}, force=True)
    return path


def _column(blocks: float | None) -> str:
    if blocks is None:
        return "finetune"
    return f"{blocks:g} block" + ("" if blocks == 1 else "s")


def _settings(run: FinetuneConfig, config: EvaluateConfig, blocks: float | None) -> str:
    train = run.train
    images = train.batch_size * train.accumulate
    part = "the whole encoder" if blocks is None else f"the last {_column(blocks)}" if blocks else "no block"
    how = "" if config.finetune.recipe is None else f" of {config.finetune.recipe}"
    return (
        f"{part} and the head trained by the recipe{how}, {train.steps} steps of {images} random crops, "
        f"base_lr {train.base_lr:g}, layer decay {train.layer_decay:g}, seed {train.seed}"
    )
