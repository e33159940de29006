"""Hugging Face's ConvNextV2ForImageClassification; ConvNextV2Model has no `convnextv2.` before its names."""

from fcmae.convert.formats.format import Format
from fcmae.convert.formats.layouts import GRN_MAP

_BLOCK = "[convnextv2.]encoder.stages.{stage}.layers.{block}"
NAMES = {
    "[convnextv2.]embeddings.patch_embeddings.{param}": "encoder.stem.0.{param}",
    "[convnextv2.]embeddings.layernorm.{param}": "encoder.stem.1.{param}",
    "[convnextv2.]encoder.stages.{stage}.downsampling_layer.0.{param}": (
        "encoder.stages.{stage}.downsample.0.{param}"
    ),
    "[convnextv2.]encoder.stages.{stage}.downsampling_layer.1.{param}": (
        "encoder.stages.{stage}.downsample.1.{param}"
    ),
    f"{_BLOCK}.dwconv.{{param}}": "encoder.stages.{stage}.blocks.{block}.conv_dw.{param}",
    f"{_BLOCK}.layernorm.{{param}}": "encoder.stages.{stage}.blocks.{block}.norm.{param}",
    f"{_BLOCK}.pwconv1.{{param}}": "encoder.stages.{stage}.blocks.{block}.mlp.fc1.{param}",
    f"{_BLOCK}.grn.{{param}}": "encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}",
    f"{_BLOCK}.pwconv2.{{param}}": "encoder.stages.{stage}.blocks.{block}.mlp.fc2.{param}",
    "[convnextv2.]layernorm.{param}": "head.norm.{param}",
    "classifier.{param}": "head.fc.{param}",
}
LAYOUTS = {"encoder.stages.{stage}.blocks.{block}.mlp.grn.{param}": GRN_MAP}

FORMAT = Format(
    name="transformers",
    marks={
        "[convnextv2.]embeddings.patch_embeddings.weight": 4,
        "[convnextv2.]encoder.stages.0.layers.0.grn.weight": 4,
    },
    names=NAMES,
    layouts=LAYOUTS,
)
