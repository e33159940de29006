"""timm's `convnextv2_*` and `convnext_*`, with or without the head; our encoder alone has the same names.

timm's atto to nano store linear layers as 1x1 convolutions.
"""

from fcmae.convert.formats.format import Format
from fcmae.models.gates import OWN_GATES

_MLP = "stages.{stage}.blocks.{block}.mlp"
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
    # What ablations have in GRN's place: layer scale is timm's ConvNeXt V1, the others are our own.
    "stages.{stage}.blocks.{block}.gamma": "encoder.stages.{stage}.blocks.{block}.gamma",
    **{f"{_MLP}.{gate}.{{path}}": f"encoder.{_MLP}.{gate}.{{path}}" for gate in OWN_GATES},
    "head.norm.{param}": "head.norm.{param}",
    "head.fc.{param}": "head.fc.{param}",
}

FORMAT = Format(name="timm", marks={"stem.0.weight": 4}, names=NAMES)
