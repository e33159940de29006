"""The original FCMAE's pretraining checkpoint: a MinkowskiEngine encoder and a dense decoder."""

from fcmae.convert.formats.format import Format
from fcmae.convert.formats.layouts import (
    CHANNEL_MAP,
    GRN_MAP,
    MINKOWSKI,
    MINKOWSKI_DEPTHWISE,
    POINTWISE,
    ROW,
)

NAMES = {
    "encoder.downsample_layers.0.0.{param}": "encoder.stem.0.{param}",
    "encoder.downsample_layers.0.1.{param}": "encoder.stem.1.{param}",
    "encoder.downsample_layers.{stage}.0.ln.{param}": "encoder.stages.{stage}.downsample.0.{param}",
    "encoder.downsample_layers.{stage}.1.kernel": "encoder.stages.{stage}.downsample.1.weight",
    "encoder.downsample_layers.{stage}.1.bias": "encoder.stages.{stage}.downsample.1.bias",
    "encoder.stages.{stage}.{block}.dwconv.kernel": "encoder.stages.{stage}.blocks.{block}.conv_dw.weight",
    "encoder.stages.{stage}.{block}.dwconv.bias": "encoder.stages.{stage}.blocks.{block}.conv_dw.bias",
    "encoder.stages.{stage}.{block}.norm.ln.{param}": "encoder.stages.{stage}.blocks.{block}.norm.{param}",
    "encoder.stages.{stage}.{block}.pwconv1.linear.{param}": (
        "encoder.stages.{stage}.blocks.{block}.mlp.fc1.{param}"
    ),
    "encoder.stages.{stage}.{block}.grn.gamma": "encoder.stages.{stage}.blocks.{block}.mlp.grn.weight",
    "encoder.stages.{stage}.{block}.grn.beta": "encoder.stages.{stage}.blocks.{block}.mlp.grn.bias",
    "encoder.stages.{stage}.{block}.pwconv2.linear.{param}": (
        "encoder.stages.{stage}.blocks.{block}.mlp.fc2.{param}"
    ),
    "proj.{param}": "decoder.proj.{param}",
    "mask_token": "decoder.mask_token",
    "decoder.{block}.dwconv.{param}": "decoder.blocks.{block}.conv_dw.{param}",
    "decoder.{block}.norm.{param}": "decoder.blocks.{block}.norm.{param}",
    "decoder.{block}.pwconv1.{param}": "decoder.blocks.{block}.mlp.fc1.{param}",
    "decoder.{block}.grn.gamma": "decoder.blocks.{block}.mlp.grn.weight",
    "decoder.{block}.grn.beta": "decoder.blocks.{block}.mlp.grn.bias",
    "decoder.{block}.pwconv2.{param}": "decoder.blocks.{block}.mlp.fc2.{param}",
    "pred.{param}": "decoder.pred.{param}",
}
LAYOUTS = {
    "encoder.stages.{stage}.downsample.1.weight": MINKOWSKI,
    "encoder.stages.{stage}.downsample.1.bias": ROW,
    "encoder.stages.{stage}.blocks.{block}.conv_dw.weight": MINKOWSKI_DEPTHWISE,
    "encoder.stages.{stage}.blocks.{block}.conv_dw.bias": ROW,
    "encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}": ROW,
    "decoder.proj.weight": POINTWISE,
    "decoder.mask_token": CHANNEL_MAP,
    "decoder.blocks.{block}.mlp.grn.{param}": GRN_MAP,
    "decoder.pred.weight": POINTWISE,
}

FORMAT = Format(
    name="minkowski",
    marks={"encoder.stages.0.0.dwconv.kernel": 2},
    names=NAMES,
    layouts=LAYOUTS,
    note="pretrained with GRN over the whole batch; here it normalises each image by itself",
)
