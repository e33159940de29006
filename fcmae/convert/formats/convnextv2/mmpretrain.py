"""mmpretrain's ConvNeXt V2 classifier, and its SparK pretraining of a ConvNeXt V2 encoder."""

from fcmae.convert.formats.format import Format

_BLOCK = "[backbone.]stages.{stage}.{block}"
NAMES = {
    "[backbone.]downsample_layers.0.0.{param}": "encoder.stem.0.{param}",
    "[backbone.]downsample_layers.0.1.{param}": "encoder.stem.1.{param}",
    "[backbone.]downsample_layers.{stage}.0.{param}": "encoder.stages.{stage}.downsample.0.{param}",
    "[backbone.]downsample_layers.{stage}.1.{param}": "encoder.stages.{stage}.downsample.1.{param}",
    f"{_BLOCK}.depthwise_conv.{{param}}": "encoder.stages.{stage}.blocks.{block}.conv_dw.{param}",
    f"{_BLOCK}.norm.{{param}}": "encoder.stages.{stage}.blocks.{block}.norm.{param}",
    f"{_BLOCK}.pointwise_conv1.{{param}}": "encoder.stages.{stage}.blocks.{block}.mlp.fc1.{param}",
    f"{_BLOCK}.grn.gamma": "encoder.stages.{stage}.blocks.{block}.mlp.grn.weight",
    f"{_BLOCK}.grn.beta": "encoder.stages.{stage}.blocks.{block}.mlp.grn.bias",
    f"{_BLOCK}.pointwise_conv2.{{param}}": "encoder.stages.{stage}.blocks.{block}.mlp.fc2.{param}",
    "[backbone.]norm3.{param}": "head.norm.{param}",
    "head.fc.{param}": "head.fc.{param}",
}
_SPARK = "SparK's decoder is a U-Net, which no method here has"
DROPPED = {
    "neck.{path}": _SPARK,
    "enc_dec_norms.{path}": _SPARK,
    "enc_dec_projectors.{path}": _SPARK,
    "mask_tokens.{path}": _SPARK,
}

FORMAT = Format(
    name="mmpretrain",
    marks={"[backbone.]stages.0.0.depthwise_conv.weight": 4, "[backbone.]stages.0.0.grn.gamma": 1},
    names=NAMES,
    dropped=DROPPED,
)
