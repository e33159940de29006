"""`fcmae diversity`: how diverse the features of some networks are, layer by layer."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcmae.config import DiversityConfig
from fcmae.data import ImageDataset, eval_transform, evaluation_batches, open_dataset
from fcmae.errors import InputError
from fcmae.evaluation.devices import find_device
from fcmae.evaluation.diversity.measure import LayerDiversity, measure_diversity
from fcmae.evaluation.diversity.models import load_observed
from fcmae.evaluation.diversity.page import write_diversity_page
from fcmae.evaluation.diversity.selectivity import measure_selectivity
from fcmae.evaluation.settings import told_otherwise

NUMBERS = [field.name for field in fields(LayerDiversity) if field.name != "maps"]


def compare_diversity(
    config: DiversityConfig, paths: Sequence[str], *, log: Callable[[str], object] = print
) -> dict[str, list[LayerDiversity]]:
    """Measure every network on the same images; write `report.html` and `diversity.json` to `config.out`.

    Args:
        config: Images and modules.
        paths: As `load_observed` takes them.
        log: Receives the means of each network and what was written.
    Returns:
        Name -> layers.
    Raises:
        InputError: nothing to measure, a network or image that cannot be used, or a folder that cannot be
            written.
    """
    if not paths:
        raise InputError(
            "diversity: expected checkpoints before the options, got none. "
            "Name run folders, files or timm:NAME."
        )
    device = find_device(config.device)
    dataset = open_dataset(config.data, split="val", labelled=config.selectivity)
    count = min(config.images, len(dataset))
    dataset = dataset.subset([place * len(dataset) // count for place in range(count)])
    found: dict[str, list[LayerDiversity]] = {}
    selective: dict[str, dict[str, Tensor]] = {}
    for path in dict.fromkeys(paths):
        observed = load_observed(path, in_chans=config.data.in_chans, num_heads=config.num_heads)
        otherwise = told_otherwise(observed.data, config.data)
        if otherwise is not None:
            log(f"{path}: {otherwise}")
        try:
            model = observed.model.to(device)
            found[path] = measure_diversity(
                model,
                (images for images, _ in _batches(dataset, config, device, log)),
                modules=config.modules,
                prefix_tokens=observed.prefix_tokens,
            )
            if config.selectivity:
                selective[path] = measure_selectivity(
                    model,
                    _batches(dataset, config, device, log),
                    classes=len(dataset.classes or ()),
                    modules=config.modules,
                    prefix_tokens=observed.prefix_tokens,
                )
        except AssertionError as error:  # how timm refuses images of another size
            raise InputError(
                f"data.image_size: expected one that {path} takes, got {config.data.image_size}: {error}"
            ) from error
        log(_summary(path, found[path]))
    where = config.data.source if config.data.root is None else config.data.val_root or config.data.root
    height, width = config.data.size
    images = f"{next(iter(found.values()))[0].images} images of {where} at {height} x {width} pixels"
    out = Path(config.out)
    try:
        write_diversity_page(
            out / "report.html",
            list(found.items()),
            images=images,
            modules=config.modules,
            selective=selective,
        )
        content = json.dumps(_plain(found, selective, images, config.modules), indent=1)
        (out / "diversity.json").write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"out: expected to write to {out}, got: {error.strerror}. Choose another folder."
        ) from error
    log(f"wrote {out / 'report.html'} and {out / 'diversity.json'}, measured on {images}")
    return found


def _batches(
    dataset: ImageDataset, config: DiversityConfig, device: torch.device, log: Callable[[str], object]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and their labels, which are empty where there are none."""
    batches = evaluation_batches(
        dataset, eval_transform(config.data), batch_size=config.batch_size, workers=config.data.workers
    )
    for batch in batches:
        for line in batch.bad:
            log(f"skipped {line}")
        labels = torch.empty(0, dtype=torch.int64) if batch.labels is None else batch.labels
        yield batch.images.to(device), labels


def _summary(path: str, layers: Sequence[LayerDiversity]) -> str:
    def over_layers(field: str) -> float:
        return sum(getattr(layer, field) for layer in layers) / len(layers)

    return (
        f"{path}: {len(layers)} layers, {layers[0].images} images; means over the layers: "
        f"distance {over_layers('distance'):.3f}, dead {100 * over_layers('dead'):.1f} %, "
        f"saturated {100 * over_layers('saturated'):.1f} %, "
        f"effective rank {over_layers('effective_rank'):.1f}"
    )


def _plain(
    found: dict[str, list[LayerDiversity]],
    selective: dict[str, dict[str, Tensor]],
    images: str,
    modules: str,
) -> dict[str, Any]:
    networks: dict[str, list[dict[str, Any]]] = {}
    for name, layers in found.items():
        networks[name] = [{field: getattr(layer, field) for field in NUMBERS} for layer in layers]
        for layer in networks[name] if name in selective else []:
            layer["class_selectivity"] = selective[name][layer["module"]].tolist()
    return {"images": images, "modules": modules, "networks": networks}
