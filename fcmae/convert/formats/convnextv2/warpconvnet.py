"""The original's sparse encoder with WarpConvNet's layers in place of MinkowskiEngine's."""

from fcmae.convert.formats.convnextv2 import official
from fcmae.convert.formats.format import Format
from fcmae.convert.formats.layouts import ROW, WARPCONVNET, WARPCONVNET_DEPTHWISE

NAMES = {f"encoder.{theirs}": ours for theirs, ours in official.NAMES.items() if ours.startswith("encoder.")}
LAYOUTS = {
    "encoder.stages.{stage}.downsample.1.weight": WARPCONVNET,
    "encoder.stages.{stage}.blocks.{block}.conv_dw.weight": WARPCONVNET_DEPTHWISE,
    "encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}": ROW,
}

FORMAT = Format(
    name="warpconvnet", marks={"encoder.stages.0.0.dwconv.weight": 2}, names=NAMES, layouts=LAYOUTS
)
