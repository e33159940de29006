"""ViT's formats, one module each: those of MAE, MSN, timm and transformers."""

from fcmae.convert.formats.format import Format
from fcmae.convert.formats.ours import msn_format, pretraining_format
from fcmae.convert.formats.vit import mae, msn, timm, transformers

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        pretraining_format("cls_token", 3),
        msn_format("cls_token", 3),
        timm.FORMAT,
        mae.FORMAT,
        msn.FORMAT,
        transformers.FORMAT,
    )
}

__all__ = ["FORMATS"]
