"""The original's sparse encoder with spconv's layers in place of MinkowskiEngine's.

spconv has no depthwise convolution: a SubMConv2d in its place is a regular one. It is read where it computes
the same, with zeros wherever input and output channel differ, and refused where it does not.
"""

from fcmae.convert.formats.convnextv2 import official
from fcmae.convert.formats.format import Format
from fcmae.convert.formats.layouts import ROW, SPCONV, SPCONV_DEPTHWISE

NAMES = {f"encoder.{theirs}": ours for theirs, ours in official.NAMES.items() if ours.startswith("encoder.")}
LAYOUTS = {
    "encoder.stages.{stage}.downsample.1.weight": SPCONV,
    "encoder.stages.{stage}.blocks.{block}.conv_dw.weight": SPCONV_DEPTHWISE,
    "encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}": ROW,
}

FORMAT = Format(name="spconv", marks={"encoder.stages.0.0.dwconv.weight": 4}, names=NAMES, layouts=LAYOUTS)
