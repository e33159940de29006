"""The authors' dense ConvNeXt V2: released encoders and classifiers, and fine-tuning checkpoints."""

from fcmae.convert.formats.format import Format
from fcmae.convert.formats.layouts import GRN_MAP

NAMES = {
    "downsample_layers.0.0.{param}": "encoder.stem.0.{param}",
    "downsample_layers.0.1.{param}": "encoder.stem.1.{param}",
    "downsample_layers.{stage}.0.{param}": "encoder.stages.{stage}.downsample.0.{param}",
    "downsample_layers.{stage}.1.{param}": "encoder.stages.{stage}.downsample.1.{param}",
    "stages.{stage}.{block}.dwconv.{param}": "encoder.stages.{stage}.blocks.{block}.conv_dw.{param}",
    "stages.{stage}.{block}.norm.{param}": "encoder.stages.{stage}.blocks.{block}.norm.{param}",
    "stages.{stage}.{block}.pwconv1.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.fc1.{param}",
    "stages.{stage}.{block}.grn.gamma": "encoder.stages.{stage}.blocks.{block}.mlp.grn.weight",
    "stages.{stage}.{block}.grn.beta": "encoder.stages.{stage}.blocks.{block}.mlp.grn.bias",
    "stages.{stage}.{block}.pwconv2.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.fc2.{param}",
    "norm.{param}": "head.norm.{param}",
    "head.{param}": "head.fc.{param}",
}
LAYOUTS = {"encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}": GRN_MAP}

FORMAT = Format(
    name="official",
    marks={"downsample_layers.0.0.weight": 4, "stages.0.0.dwconv.weight": 4},
    lacks=("stages.0.0.gamma",),  # ConvNeXt V1's layer scale
    names=NAMES,
    layouts=LAYOUTS,
)
