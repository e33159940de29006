"""The ConvMAE classifier that is fine-tuned, from a pretraining checkpoint of ours or the original's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fcmae.config import ClassifierConfig
from fcmae.convert.files import read_checkpoint, read_newest_checkpoint
from fcmae.errors import InputError
from fcmae.models import ConvMAEPreset
from fcmae.models.convmae_classifier import ConvMAEClassifier

# What pretraining holds beside the classifier's part, under the original's names, and any head.
_LEFT_OUT = ("decoder", "mask_token", "stage1_output_decode.", "stage2_output_decode.", "norm.", "head.")


def build_convmae_classifier(
    model: ClassifierConfig,
    preset: ConvMAEPreset,
    weights: str | Mapping[str, Tensor] | None,
    *,
    num_classes: int,
    in_chans: int,
) -> tuple[ConvMAEClassifier, tuple[int, ...]]:
    """A classifier with a new head, and the number of blocks of each stage; see `build_classifier`.

    Attention heads leave no trace in the weights: a pretraining run's own number has to be given as
    `num_heads`.

    Raises:
        InputError: weights that cannot be read, or of another network or other images.
    """
    heads = preset.num_heads
    if model.num_heads is not None:
        preset = replace(preset, num_heads=model.num_heads)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "drop_path": model.drop_path,
        "head_init_scale": model.head_init_scale,
    }
    if weights is None:
        return ConvMAEClassifier(**vars(preset), **options), preset.depths
    content = _read(weights)
    _require_same_network(content.get("config", {}), model, heads)
    state = _encoder_weights(content.get("model", content))
    preset, kernel_size, shown_chans = _sizes(preset, state)
    if shown_chans != in_chans:
        raise InputError(
            f"data.in_chans: expected that of the weights, {shown_chans}, got {in_chans}. "
            f"Set --data.in_chans={shown_chans}."
        )
    classifier = ConvMAEClassifier(**vars(preset), **options, kernel_size=kernel_size)
    expected = classifier.state_dict()
    own = {name: tensor for name, tensor in expected.items() if name.startswith(("head.", "fc_norm."))}
    missing = sorted(expected.keys() - own.keys() - state.keys())
    foreign = sorted(state.keys() - expected.keys())
    for what, names in (("without", missing), ("with", foreign)):
        if names:
            raise InputError(
                f"model.weights: expected those of {model.backbone}, got weights {what} {names[0]}. Name a "
                "ConvMAE checkpoint."
            )
    classifier.load_state_dict(own | state)
    return classifier, preset.depths


def _read(weights: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint holds; of a run folder, its newest readable one."""
    if isinstance(weights, Mapping):
        return weights
    if not Path(weights).is_dir():
        return read_checkpoint(weights, mmap=True)
    newest = read_newest_checkpoint(weights, mmap=True)
    if newest is None:
        raise InputError(
            f"model.weights: expected step_*.pt in {weights} or its checkpoints, got none. Name another run."
        )
    return newest[1]


def _require_same_network(config: Mapping[str, Any], model: ClassifierConfig, heads: int) -> None:
    """Raise InputError where a checkpoint's config names another backbone or other heads."""
    pretrained: Mapping[str, Any] = config.get("model", {})
    backbone = pretrained.get("backbone", model.backbone)
    if backbone != model.backbone:
        raise InputError(
            f"model.backbone: expected that of the weights, {backbone}, got {model.backbone}. "
            f"Set --model.backbone={backbone}."
        )
    own = model.num_heads or heads
    theirs = pretrained.get("num_heads") or (heads if pretrained else own)
    if theirs != own:
        raise InputError(
            f"model.num_heads: expected that of the weights, {theirs}, got {own}. "
            f"Set --model.num_heads={theirs}."
        )


def _encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights and a fine-tuned `fc_norm`, by the original's names, without any head."""
    prefix = "encoder." if any(name.startswith("encoder.") for name in state) else ""
    names = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    return {own: state[name] for name, own in names.items() if not own.startswith(_LEFT_OUT)}


def _sizes(preset: ConvMAEPreset, state: Mapping[str, Tensor]) -> tuple[ConvMAEPreset, int, int]:
    """The preset with the sizes that the weights show, and their channels and depthwise kernels."""
    try:
        first = [state[f"blocks{stage}.0.mlp.fc1.weight"] for stage in (1, 2, 3)]
        kernel_size = state["blocks1.0.attn.weight"].shape[-1]
        in_chans = state["patch_embed1.proj.weight"].shape[1]
    except KeyError as error:
        raise InputError(
            f"model.weights: expected those of a ConvMAE, got weights without {error.args[0]}. "
            "Name a ConvMAE checkpoint."
        ) from None
    norms = [name.split(".")[0] for name in state if name.endswith("norm1.weight")]
    own = replace(
        preset,
        depths=tuple(norms.count(f"blocks{stage}") for stage in (1, 2, 3)),
        dims=tuple(weight.shape[1] for weight in first),
        mlp_ratio=tuple(weight.shape[0] // weight.shape[1] for weight in first),
    )
    return own, kernel_size, in_chans
