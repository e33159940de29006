"""Folding for deployment: a LayerNorm's scale and shift become part of the linear layer behind it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fcmae.convert.formats import Format
from fcmae.convert.formats.format import pattern_of

Folds = Mapping[str, str]
_ROWS = 256


def fold_layer_norm(
    weights: Mapping[str, Tensor], form: Format, folds: Folds
) -> tuple[dict[str, Tensor], list[str]]:
    """The same function with every foldable LayerNorm's weight 1 and bias 0.

    For a layer W, b behind a norm with scale s and shift t: `W (s * n + t) + b = (W * s) n + (W t + b)`,
    summed in float64. That holds for convolutions whose kernel is their stride, too: there is no padding.

    Args:
        weights: Of `form`; they are not changed.
        folds: Our name of a norm -> our name of the linear layer that alone reads it.
    Returns:
        (weights of `form`, our names of the norms that were folded).
    """
    weights = form.join(weights)
    folded = dict(weights)
    key_of = {name: key for key in weights if (name := form.to_ours(key)) is not None}
    norms = [name.removesuffix(".weight") for name in key_of if name.endswith(".weight")]
    done = []

    def read(name: str) -> Tensor:
        return form.import_tensor(name, weights[key_of[name]])

    def write(name: str, tensor: Tensor) -> None:
        old = weights[key_of[name]]
        folded[key_of[name]] = form.export_tensor(name, tensor).reshape(old.shape).to(old.dtype)

    for norm in norms:
        linear = _partner(norm, folds)
        if linear is None or f"{linear}.weight" not in key_of:
            continue
        scale, shift = read(f"{norm}.weight"), read(f"{norm}.bias")
        weight = read(f"{linear}.weight")
        columns = (1, -1) + (1,) * (weight.ndim - 2)
        # A few rows at a time: a large matrix in float64 would be the largest thing in memory.
        moved = [(rows.double() * shift.view(columns)).flatten(1).sum(1) for rows in weight.split(_ROWS)]
        write(f"{linear}.weight", weight * scale.view(columns))
        write(f"{linear}.bias", read(f"{linear}.bias").double() + torch.cat(moved))
        write(f"{norm}.weight", torch.ones_like(scale))
        write(f"{norm}.bias", torch.zeros_like(shift))
        done.append(norm)
    return form.split(folded), done


def _partner(norm: str, folds: Folds) -> str | None:
    for template, linear in folds.items():
        if found := pattern_of(template).fullmatch(norm):
            return linear.format(**found.groupdict())
    return None
