"""State dicts of one format made into those of another."""

from collections.abc import Mapping

from torch import Tensor

from fcmae.convert.formats.convnextv2 import FORMATS
from fcmae.convert.networks.network import Network
from fcmae.convert.report import Report
from fcmae.convert.source import Source, open_source
from fcmae.convert.transfer import transfer
from fcmae.errors import InputError

TARGETS = ("timm", "official", "transformers", "mmpretrain", "fcmae")
"""Formats that are written."""


def convert_source(source: Source, architecture: Network, target: str) -> tuple[dict[str, Tensor], Report]:
    """The state dict of `source` in another format.

    A classifier's head comes along; a decoder where the target has one.

    Raises:
        InputError: the family has no such format, or see transfer.
    """
    formats = {name: form for name, form in source.family.formats.items() if name in TARGETS}
    if target not in formats:
        raise InputError(
            f"target: expected {' or '.join(formats)} for {source.family.name}, got {target}. "
            "Choose one of them."
        )
    architecture.require_fits(target)
    ours = source.ours()
    head = ours.get("head.fc.weight")
    # What is converted to a classifier's format and lacks a head is told so. Ours need not be a classifier.
    num_classes = len(head) if head is not None else 0 if target == "fcmae" else 1000
    if target == "timm":  # timm itself knows best
        shapes = architecture.timm_shapes(num_classes=num_classes)
    else:
        decoder = {key: tensor for key, tensor in ours.items() if not key.startswith(("encoder.", "head."))}
        shapes = formats[target].shapes_of(architecture.our_shapes(num_classes=num_classes, decoder=decoder))
    form = formats[target]
    converted, report = transfer(source.weights, source=source.format, target=form, target_shapes=shapes)
    return form.split(converted), report


def convert_weights(
    weights: Mapping[str, Tensor],
    target: str,
    *,
    architecture: Network | None = None,
    source: str = "auto",
) -> tuple[dict[str, Tensor], Report]:
    """A state dict in another format.

    Args:
        weights: A state dict of any format that is read.
        target: `timm`, `official`, `transformers`, `mmpretrain` or `fcmae`.
        architecture: What the weights are of; None: told from the shapes.
        source: The format of `weights`, or `auto`.
    Returns:
        (state dict without the head unless `weights` has one, report).
    Raises:
        InputError: see transfer.
    """
    opened = open_source(weights, source=source)
    return convert_source(opened, architecture or opened.architecture(), target)


def to_timm(
    weights: Mapping[str, Tensor], architecture: Network | None = None, *, source: str = "auto"
) -> tuple[dict[str, Tensor], Report]:
    """The state dict of timm's `convnextv2_*`, see convert_weights.

    Names and values of our encoder stay; where timm's preset has 1x1 convolutions (atto to nano), fc1 and fc2
    become [O, I, 1, 1].
    """
    return convert_weights(weights, "timm", architecture=architecture, source=source)


def from_timm(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """Our encoder's state dict for timm weights: the inverse of to_timm, without the head.

    Raises:
        InputError: see transfer.
    """
    source = open_source(weights, source="timm")
    shapes = source.architecture().our_shapes(num_classes=0, decoder={})
    form = FORMATS["timm"]
    return transfer(source.weights, source=form, target=form, target_shapes=form.shapes_of(shapes))
