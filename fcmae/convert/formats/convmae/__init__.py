"""ConvMAE's formats, one module each."""

import dataclasses

from fcmae.convert.formats.convmae import official
from fcmae.convert.formats.format import Format
from fcmae.convert.formats.ours import NAMES, msn_format, pretraining_format

_MARK = "patch_embed1.proj.weight"
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        # The method's own layers bring the first two stages to the last one's sites.
        dataclasses.replace(
            pretraining_format(_MARK, 4),
            names={
                **NAMES,
                "stage1_output_decode.{param}": "stage1_output_decode.{param}",
                "stage2_output_decode.{param}": "stage2_output_decode.{param}",
            },
        ),
        msn_format(_MARK, 4),
        official.FORMAT,
    )
}

__all__ = ["FORMATS"]
