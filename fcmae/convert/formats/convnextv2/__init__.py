"""ConvNeXt V2's formats, one module each."""

from fcmae.convert.formats.convnextv2 import (
    minkowski,
    mmpretrain,
    official,
    spconv,
    timm,
    transformers,
    warpconvnet,
)
from fcmae.convert.formats.format import Format
from fcmae.convert.formats.ours import msn_format, pretraining_format

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        pretraining_format("stem.0.weight", 4),
        msn_format("stem.0.weight", 4),
        timm.FORMAT,
        official.FORMAT,
        minkowski.FORMAT,
        spconv.FORMAT,
        warpconvnet.FORMAT,
        transformers.FORMAT,
        mmpretrain.FORMAT,
    )
}

__all__ = ["FORMATS"]
