"""State dicts between our encoder and the dense timm model."""

from collections.abc import Mapping

from torch import Tensor

from fcmae.convert.architecture import Architecture
from fcmae.convert.formats import FORMATS
from fcmae.convert.report import Report
from fcmae.convert.source import Source, open_source
from fcmae.convert.transfer import transfer


def source_to_timm(source: Source, architecture: Architecture) -> tuple[dict[str, Tensor], Report]:
    """The timm state dict of `source`; a classifier's head comes along, a decoder stays behind."""
    head = source.weights.get("head.fc.weight")
    shapes = architecture.timm_shapes(num_classes=1000 if head is None else len(head))
    return transfer(source.weights, source=source.format, target=FORMATS["timm"], target_shapes=shapes)


def to_timm(
    weights: Mapping[str, Tensor], architecture: Architecture | None = None, *, source: str = "auto"
) -> tuple[dict[str, Tensor], Report]:
    """The state dict of timm's `convnextv2_*` for weights of ours.

    Names and values stay; where timm's preset has 1x1 convolutions (atto to nano), fc1 and fc2 become
    [O, I, 1, 1].

    Args:
        weights: A pretraining state dict (`encoder.*`, `decoder.*`), our encoder's, or a timm one.
        architecture: The timm model to fit; None: told from the shapes.
        source: The format, or `auto`.
    Returns:
        (state dict without the head unless `weights` has one, report).
    Raises:
        InputError: see transfer.
    """
    opened = open_source(weights, source=source)
    return source_to_timm(opened, architecture or opened.architecture())


def from_timm(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """Our encoder's state dict for timm weights: the inverse of to_timm, without the head.

    Raises:
        InputError: see transfer.
    """
    source = open_source(weights, source="timm")
    shapes = {
        name: shape if len(shape) == 1 or ".mlp." not in name else shape[:2]
        for name, shape in source.architecture().timm_shapes(num_classes=0).items()
        if not name.startswith("head.")
    }
    return transfer(source.weights, source=source.format, target=FORMATS["timm"], target_shapes=shapes)
