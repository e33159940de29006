"""The dense classifier that is fine-tuned, with pretrained weights where there are some."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcmae.config import ClassifierConfig
from fcmae.convert import Architecture, Source, load_weights, open_source
from fcmae.convert.networks.convmae import ConvMAEArchitecture
from fcmae.convert.networks.gating import with_gate_of
from fcmae.convert.networks.network import Network
from fcmae.convert.networks.vit import ViTArchitecture
from fcmae.errors import InputError
from fcmae.masking import patch_grid
from fcmae.models import PRESETS, ConvMAEPreset, ConvNeXtV2Preset, ViTPreset, find_preset
from fcmae.models.convmae_classifier import ConvMAEClassifier
from fcmae.models.position import fit_positions, positions_at
from fcmae.models.presets import Preset
from fcmae.training.freezing import train_last_blocks

_ARCHITECTURES: dict[type[Preset], type[Network]] = {
    ConvNeXtV2Preset: Architecture,
    ViTPreset: ViTArchitecture,
    ConvMAEPreset: ConvMAEArchitecture,
}


def build_classifier(
    model: ClassifierConfig,
    weights: str | Mapping[str, Any] | None,
    *,
    num_classes: int,
    in_chans: int,
    image_size: tuple[int, int] = (224, 224),
    log: Callable[[str], object] = print,
) -> tuple[nn.Module, tuple[int, ...]]:
    """timm's `convnextv2_*` or `vit_*`, or our `convmae_*`, with a new head, and the blocks of each stage.

    ConvNeXt V2 with gates that timm lacks is our own dense network.

    The head is a truncated normal of std 0.02 times `head_init_scale`, without bias: the originals' std 2e-5
    at 0.001. Of a classifier's weights all but the head's last layer is used, whatever its classes, as the
    original does between ImageNet-22K and 1K. Sizes that are no preset's, such as a pretraining run's own
    depths, are taken from the weights; attention heads leave no trace in them and come from
    `model.num_heads`.

    Args:
        model: Backbone, head, regularisation, and which blocks are trained.
        weights: A checkpoint, a run folder, converted weights, or what such a file holds; None: random.
        num_classes: Outputs of the head.
        in_chans: Channels of the images.
        image_size: (H, W) in pixels that a ViT's position embeddings are made for: fixed ones are computed
            anew, learnt ones are interpolated, and fine-tuning trains either.
        log: Receives a line for a trained head that is replaced, and one for interpolated positions.
    Returns:
        (classifier, depths).
    Raises:
        InputError: unknown backbone, weights that cannot be read, or weights of another backbone or other
            images, or fewer blocks than are to be trained.
    """
    preset = find_preset(model.backbone)
    if model.gating is not None and not isinstance(preset, ConvNeXtV2Preset):
        raise InputError(
            f"model.gating: expected it left out for {model.backbone}, got {model.gating}. "
            "Only ConvNeXt V2 has it."
        )
    if model.global_pool == "token" and not isinstance(preset, ViTPreset):
        raise InputError(
            f"model.global_pool: expected avg for {model.backbone}, which has no class token, got token. "
            "Leave it out."
        )
    architecture, source, heads = open_network(
        model.backbone, weights, in_chans=in_chans, num_heads=model.num_heads
    )
    if isinstance(architecture, ViTArchitecture):
        classifier = _vit(model, architecture, source, num_classes, heads, image_size, log)
    elif isinstance(architecture, ConvMAEArchitecture):
        classifier = _convmae(model, architecture, source, num_classes, heads)
    else:
        classifier = _convnextv2(model, architecture, source, num_classes)
    if source is not None:
        _tell_new_head(source, num_classes, log)
    depths = architecture.depths or find_preset(architecture.backbone).depths
    if model.train_last_blocks is not None:
        train_last_blocks(classifier, model.train_last_blocks, depths=depths)
    return classifier, depths


def open_network(
    backbone: str, weights: str | Path | Mapping[str, Any] | None, *, in_chans: int, num_heads: int | None
) -> tuple[Network, Source | None, int]:
    """What is to be built, the weights for it, and its attention heads.

    Args:
        backbone: Name of a preset.
        weights: As for `build_classifier`.
        in_chans: Channels of the images.
        num_heads: Attention heads; None: the preset's.
    Returns:
        (the weights' architecture, or the preset's; the weights, or None; heads, 1 where there are none).
    Raises:
        InputError: unknown backbone, weights that cannot be read, or weights of another backbone, of other
            images or of other heads.
    """
    preset = find_preset(backbone)
    if num_heads is not None and isinstance(preset, ConvNeXtV2Preset):
        raise InputError(f"model.num_heads: expected none for {backbone}, got {num_heads}. Leave it out.")
    source = None if weights is None else open_source(weights)
    if source is None:
        architecture = _of_preset(backbone, preset, in_chans)
    else:
        architecture = source.architecture()
        _require_same_network(architecture, source, backbone, in_chans)
    return architecture, source, _heads(num_heads, preset, source)


def _tell_new_head(source: Source, num_classes: int, log: Callable[[str], object]) -> None:
    old = next((tensor for name, tensor in source.ours().items() if name == "head.fc.weight"), None)
    if old is not None:
        log(
            f"model.weights: a new head for {num_classes} classes in the place of that for {len(old)}; "
            "everything else is loaded"
        )


def _convnextv2(
    model: ClassifierConfig, architecture: Network, source: Source | None, num_classes: int
) -> nn.Module:
    assert isinstance(architecture, Architecture)
    own, gating = architecture.gating, model.gating or architecture.gating
    classifier = replace(architecture, gating=gating).create_timm(
        num_classes=num_classes, drop_path_rate=model.drop_path, head_init_scale=model.head_init_scale
    )
    if source is None:
        return classifier
    if gating == own:
        load_weights(classifier, source.without("head.fc."), source=source.format.name)
        return classifier
    if "none" not in (gating, own):
        raise InputError(
            f"model.gating: expected {own}, that of the weights, or none, got {gating}. "
            "Only where weights have no gate can another be added."
        )
    ours = {name: tensor for name, tensor in source.ours().items() if not name.startswith("head.fc.")}
    load_weights(classifier, with_gate_of(classifier, ours), source="fcmae")
    return classifier


def _vit(
    model: ClassifierConfig,
    architecture: ViTArchitecture,
    source: Source | None,
    num_classes: int,
    heads: int,
    image_size: tuple[int, int],
    log: Callable[[str], object],
) -> nn.Module:
    pool = model.global_pool or "avg"
    if architecture.dim % heads:
        raise InputError(
            f"model.num_heads: expected a divisor of the width {architecture.dim}, got {heads}. "
            "Set --model.num_heads."
        )
    if architecture.pools_patches and pool != "avg":
        raise InputError(
            f"model.global_pool: expected avg, that of the weights, got {pool}. Set --model.global_pool=avg."
        )
    grid = patch_grid(image_size, architecture.patch_size)
    classifier = replace(architecture, num_heads=heads, grid=grid, pools_patches=pool == "avg").create_timm(
        num_classes=num_classes, drop_path_rate=model.drop_path
    )
    assert isinstance(classifier.head, nn.Linear)
    with torch.no_grad():
        classifier.head.weight.mul_(model.head_init_scale)
    if source is None:
        return classifier
    # The mean of the patches has a norm of its own, which begins anew: MAE's was trained on single tokens.
    weights = source.without("head.fc.", *(["encoder.norm."] if pool == "avg" else []))
    if architecture.grid != grid:
        key = next(key for key in weights if source.format.to_ours(key) == "encoder.pos_embed")
        weights[key] = _positions(weights[key], architecture.grid, grid, log)
    load_weights(classifier, weights, source=source.format.name)
    return classifier


def _positions(
    embedding: Tensor, own_grid: tuple[int, int], grid: tuple[int, int], log: Callable[[str], object]
) -> Tensor:
    """A ViT's position embeddings, with the class token's, for another grid."""
    fitted, fixed = fit_positions(embedding, embedding, own_grid=own_grid, prefix=1)
    before, now = (f"{height} x {width}" for height, width in (own_grid, grid))
    how = "fixed ones, computed anew" if fixed else "learnt ones, interpolated"
    log(f"model.weights: position embeddings of {before} patches for {now}: {how}")
    return positions_at(fitted, grid, own_grid=own_grid, prefix=1, fixed=fixed)


def _convmae(
    model: ClassifierConfig,
    architecture: ConvMAEArchitecture,
    source: Source | None,
    num_classes: int,
    heads: int,
) -> nn.Module:
    classifier = ConvMAEClassifier(
        architecture.depths,
        architecture.dims,
        num_classes=num_classes,
        in_chans=architecture.in_chans,
        num_heads=heads,
        mlp_ratio=architecture.mlp_ratio,
        kernel_size=architecture.kernel_size,
        drop_path=model.drop_path,
        head_init_scale=model.head_init_scale,
    )
    if source is not None:
        load_weights(classifier, source.without("head.fc.", "encoder.norm."), source=source.format.name)
    return classifier


def _of_preset(backbone: str, preset: Preset, in_chans: int) -> Network:
    """The architecture without weights to tell its sizes."""
    if isinstance(preset, ViTPreset):
        return ViTArchitecture(
            backbone=backbone,
            in_chans=in_chans,
            depth=preset.depths[0],
            dim=preset.dims[0],
            num_heads=preset.num_heads,
            patch_size=preset.stem_stride,
            grid=(1, 1),
        )
    if isinstance(preset, ConvMAEPreset):
        return ConvMAEArchitecture(backbone=backbone, in_chans=in_chans, **vars(preset))
    return Architecture(backbone=backbone, in_chans=in_chans)


def _require_same_network(architecture: Network, source: Source, backbone: str, in_chans: int) -> None:
    """Raise InputError where weights are of another backbone, or of images of other channels."""
    theirs, preset = source.config.get("model", {}).get("backbone"), find_preset(backbone)
    if theirs is None and not _has_own_sizes(architecture):
        theirs = architecture.backbone
    # Without a config, weights of own sizes cannot tell which preset they were derived from.
    if theirs is None and not isinstance(architecture, _ARCHITECTURES[type(preset)]):
        raise InputError(
            f"model.backbone: expected a {source.family.name}, as the weights are, got {backbone}. "
            "Name the backbone of the weights."
        )
    if theirs not in (None, backbone):
        raise InputError(
            f"model.backbone: expected {theirs}, that of the weights, got {backbone}. "
            f"Set --model.backbone={theirs}."
        )
    if architecture.in_chans != in_chans:
        raise InputError(
            f"data.in_chans: expected that of the weights, {architecture.in_chans}, got {in_chans}. "
            f"Set --data.in_chans={architecture.in_chans}."
        )


def _has_own_sizes(architecture: Network) -> bool:
    if isinstance(architecture, Architecture):
        return architecture.depths is not None
    return architecture.backbone not in PRESETS


def _heads(num_heads: int | None, preset: Preset, source: Source | None) -> int:
    """Attention heads; 1 where there are none.

    Raises:
        InputError: the weights' config names another number.
    """
    if isinstance(preset, ConvNeXtV2Preset):
        return 1
    own = num_heads or preset.num_heads
    saved: Mapping[str, Any] = source.config.get("model", {}) if source is not None else {}
    theirs = saved.get("num_heads") or (preset.num_heads if saved else own)
    if theirs != own:
        raise InputError(
            f"model.num_heads: expected that of the weights, {theirs}, got {own}. "
            f"Set --model.num_heads={theirs}."
        )
    return own
