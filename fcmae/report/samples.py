"""What a report shows of a pretraining run: some images, some masks, and the pictures they make."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcmae.config import DataConfig, PretrainConfig
from fcmae.config_io import from_dict
from fcmae.data import ImageDataset, UnreadableImageError, denormalise, eval_transform
from fcmae.errors import InputError
from fcmae.masking import visible_from_ids
from fcmae.methods import MaskedAutoencoder, from_config
from fcmae.report.reconstruction import displayable, hide_masked, reconstruct


def load_method(path: Path, checkpoint: dict[str, Any]) -> tuple[MaskedAutoencoder, PretrainConfig]:
    """The method of a pretraining checkpoint, in evaluation mode, and the run's configuration.

    Args:
        path: Where the checkpoint lies; for messages.
        checkpoint: What `fcmae.convert.files.read_checkpoint` returned.
    Raises:
        InputError: it is no pretraining checkpoint of ours, or its weights do not fit its configuration.
    """
    if checkpoint.get("kind") != "pretrain" or "config" not in checkpoint:
        raise InputError(
            "checkpoint: expected one that fcmae pretrain wrote, got "
            f"{checkpoint.get('kind', 'bare weights')} at {path}. Only those hold a decoder."
        )
    config = from_dict(PretrainConfig, checkpoint["config"])
    method = from_config(config.model, config.data)
    if not isinstance(method, MaskedAutoencoder):
        raise InputError(
            f"checkpoint: expected a method that paints masked patches, got {config.model.method} at {path}. "
            "The others make no pictures."
        )
    try:
        method.load_state_dict(checkpoint["model"])
    except (KeyError, RuntimeError) as error:
        raise InputError(
            f"checkpoint: expected the weights that its configuration describes, got others at {path}. "
            "Use a checkpoint that this version wrote."
        ) from error
    return method.eval(), config


def read_images(
    dataset: ImageDataset, config: DataConfig, *, count: int
) -> tuple[list[str], Tensor, list[str]]:
    """Images at even distances in a dataset, so that a sorted folder shows all of its classes.

    Args:
        dataset: Where they come from.
        config: Their size and normalisation.
        count: How many, at most.
    Returns:
        Names, normalised images [B, C, H, W], and `name: reason` of each unreadable one that was left out.
    Raises:
        InputError: none of them is readable.
    """
    transform = eval_transform(config)
    count = min(count, len(dataset))
    names: list[str] = []
    images: list[Tensor] = []
    bad: list[str] = []
    for index in (place * len(dataset) // count for place in range(count)):
        try:
            images.append(transform(dataset.load(index)))
            names.append(dataset.name_of(index))
        except UnreadableImageError as error:
            bad.append(str(error))
    if not images:
        raise InputError(
            f"data: expected a readable image among {count}, got none; the first is {bad[0]}. Check the "
            "files."
        )
    return names, torch.stack(images), bad


def draw_visible(method: MaskedAutoencoder, images: Tensor, *, seed: int) -> Tensor:
    """A mask for each image as in pretraining: visible patches, bool [B, Gh, Gw]."""
    ids = method.draw_visible_ids(images, torch.Generator().manual_seed(seed))
    if ids.ndim == 3:  # several complementary masks an image: the first
        ids = ids[:, 0]
    return visible_from_ids(ids, method.grid_of(images))


def picture_rows(
    method: MaskedAutoencoder, images: Tensor, visible: Tensor, config: DataConfig
) -> list[tuple[str, Tensor]]:
    """The rows original, visible, reconstructed: (label, uint8 [B, H, W, 3]) of images [B, C, H, W]."""
    original = denormalise(images, config)
    return [
        ("original", displayable(original)),
        ("visible", displayable(hide_masked(original, visible, method.cell_size))),
        ("reconstructed", displayable(denormalise(reconstruct(method, images, visible), config))),
    ]


def read_events(run_dir: Path, event: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's log.jsonl, in order."""
    lines = (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]
