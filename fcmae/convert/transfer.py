"""Weights of one format laid out for a target of another; every key on both sides is accounted for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fcmae.convert.formats import Format
from fcmae.convert.report import Report, shorten
from fcmae.errors import InputError

# Parts of our names that one side may lack: why a key is dropped, who initialises a missing one.
# The encoder is not among them: all of it must arrive.
_DROPPED = {
    "decoder": "only pretraining has a decoder",
    "stage1_output_decode": "only pretraining adds the first stages to the last",
    "stage2_output_decode": "only pretraining adds the first stages to the last",
    "head": "the target has no such classifier",
}
_PRETRAINING = ("decoder", "stage1_output_decode", "stage2_output_decode")
_MISSING = {
    "decoder": "initialised by the method",
    "stage1_output_decode": "initialised by the method",
    "stage2_output_decode": "initialised by the method",
    "head": "initialised by the classifier",
}


def transfer(
    state_dict: Mapping[str, Tensor],
    *,
    source: Format,
    target: Format,
    target_shapes: Mapping[str, torch.Size],
) -> tuple[dict[str, Tensor], Report]:
    """The source's weights under the target's names, in its layouts and shapes, bit for bit.

    Args:
        state_dict: Weights of `source`, floating point.
        target_shapes: The target's state dict: name -> shape, all names known to `target`.
    Returns:
        (target name -> tensor, for the mapped keys, in the target's order; report).
    Raises:
        InputError: a key of either side is unexplained, a shape disagrees, or a value is not finite.
    """
    dropped = {key: why for key in state_dict if (why := source.why_dropped(key)) is not None}
    ours = {key: source.to_ours(key) for key in state_dict if key not in dropped}
    source_of: dict[str, str] = {}
    problems: list[str] = []
    for key, name in ours.items():
        if name is None:
            problems.append(f"unexplained {_describe(key, state_dict[key])}")
        elif source_of.setdefault(name, key) != key:
            problems.append(f"{_describe(key, state_dict[key])} for the second time, after {source_of[name]}")
    target_of = {name: key for key in target_shapes if (name := target.to_ours(key)) is not None}
    explained = set(target_of.values())
    extra = {key: why for key in target_shapes if (why := target.why_dropped(key)) is not None}
    problems += [
        f"unexplained target {key}" for key in target_shapes if key not in explained and key not in extra
    ]
    source_parts = {_part(name) for name in source_of}
    target_parts = {_part(name) for name in target_of}
    has_classifier = any(name.startswith("head.fc.") for name in source_of)  # then all of it must arrive

    weights: dict[str, Tensor] = {}
    mapped: dict[str, str] = {}
    missing = {key: "initialised by its model" for key in extra}
    for name, key in source_of.items():
        tensor, place, part = state_dict[key], target_of.get(name), _part(name)
        if place is None:
            if part == "encoder" or (part in _PRETRAINING and part in target_parts):
                problems.append(f"unexplained {_describe(key, tensor)}")
            else:
                dropped[key] = _DROPPED[part]
            continue
        shape = target_shapes[place]
        try:
            laid_out = target.export_tensor(name, source.import_tensor(name, tensor))
        except InputError as error:
            problems.append(str(error))
            continue
        if _without_ones(laid_out.shape) == _without_ones(shape):
            weights[place], mapped[key] = laid_out.reshape(shape), place
        elif name.startswith("head.fc.") and laid_out.shape[1:] == shape[1:]:
            # Another number of classes: the classifier keeps its own.
            dropped[key] = f"{list(tensor.shape)} does not fit the target's {list(shape)}"
            missing[place] = _MISSING[part]
        else:
            problems.append(f"{_describe(key, tensor)} where {list(shape)} is needed")
    for name, place in target_of.items():
        part = _part(name)
        if name in source_of:
            continue
        if (part == "head" and not has_classifier) or (part in _PRETRAINING and part not in source_parts):
            missing[place] = _MISSING[part]
        else:
            problems.append(f"missing {place} {list(target_shapes[place])}")
    if problems:
        raise InputError(
            f"weights: expected every key of the {source.name} weights to match the target, got "
            f"{shorten(problems)}. Check the backbone and its depths, dims and in_chans."
        )
    _check_finite(state_dict)
    report = Report(source=source.name, mapped=mapped, dropped=dropped, missing=missing)
    return {place: weights[place] for place in target_shapes if place in weights}, report


def _without_ones(shape: torch.Size) -> list[int]:
    """Equal for shapes of the same numbers in the same order: a linear layer and a 1x1 convolution."""
    return [side for side in shape if side != 1]


def _part(name: str) -> str:
    return name.split(".", 1)[0]


def _describe(key: str, tensor: Tensor) -> str:
    return f"{key} {list(tensor.shape)}"


def _check_finite(state_dict: Mapping[str, Tensor]) -> None:
    # The extremes tell, and make no copy of the tensor.
    bad = [
        key
        for key, tensor in state_dict.items()
        if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.aminmax())
    ]
    if bad:
        raise InputError(
            f"weights: expected finite values, got NaN or infinity in {shorten(bad)}. Use an earlier file."
        )
