"""ConvNeXt V2's formats, one module each."""

from fcmae.convert.formats.convnextv2 import (
    fcmae,
    minkowski,
    mmpretrain,
    official,
    spconv,
    timm,
    transformers,
    warpconvnet,
)
from fcmae.convert.formats.format import Format

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        fcmae.FORMAT,
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
