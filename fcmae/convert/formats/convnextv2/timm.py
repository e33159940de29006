"""timm's `convnextv2_*`, with or without its head; our encoder alone has the same names.

timm's atto to nano store linear layers as 1x1 convolutions.
"""

from fcmae.convert.formats.format import Format

NAMES = {
    "stem.0.{param}": "encoder.stem.0.{param}",
    "stem.1.{param}": "encoder.stem.1.{param}",
    "stages.{stage}.downsample.0.{param}": "encoder.stages.{stage}.downsample.0.{param}",
    "stages.{stage}.downsample.1.{param}": "encoder.stages.{stage}.downsample.1.{param}",
    "stages.{stage}.blocks.{block}.conv_dw.{param}": "encoder.stages.{stage}.blocks.{block}.conv_dw.{param}",
    "stages.{stage}.blocks.{block}.norm.{param}": "encoder.stages.{stage}.blocks.{block}.norm.{param}",
    "stages.{stage}.blocks.{block}.mlp.fc1.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.fc1.{param}",
    "stages.{stage}.blocks.{block}.mlp.grn.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}",
    "stages.{stage}.blocks.{block}.mlp.fc2.{param}": "encoder.stages.{stage}.blocks.{block}.mlp.fc2.{param}",
    "head.norm.{param}": "head.norm.{param}",
    "head.fc.{param}": "head.fc.{param}",
}

# ConvNeXt V1 has layer scale and no GRN.
FORMAT = Format(name="timm", marks={"stem.0.weight": 4}, lacks=("stages.0.blocks.0.gamma",), names=NAMES)
