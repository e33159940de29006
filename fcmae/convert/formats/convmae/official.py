"""ConvMAE's checkpoints, pretraining and classifiers; our encoder alone has the same names."""

from fcmae.convert.formats.format import Format

_CONV_BLOCKS = {
    f"blocks{stage}.{{block}}.{layer}.{{param}}": f"encoder.blocks{stage}.{{block}}.{layer}.{{param}}"
    for stage in (1, 2)
    for layer in ("norm1", "conv1", "attn", "conv2", "norm2", "mlp.fc1", "mlp.fc2")
}
_BLOCKS = {
    f"{theirs}.{{block}}.{layer}.{{param}}": f"{ours}.{{block}}.{layer}.{{param}}"
    for theirs, ours in (("blocks3", "encoder.blocks3"), ("decoder_blocks", "decoder.decoder_blocks"))
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
}
NAMES = {
    "pos_embed": "encoder.pos_embed",
    "patch_embed1.proj.{param}": "encoder.patch_embed1.proj.{param}",
    "patch_embed1.norm.{param}": "encoder.patch_embed1.norm.{param}",
    "patch_embed2.proj.{param}": "encoder.patch_embed2.proj.{param}",
    "patch_embed2.norm.{param}": "encoder.patch_embed2.norm.{param}",
    "patch_embed3.proj.{param}": "encoder.patch_embed3.proj.{param}",
    "patch_embed3.norm.{param}": "encoder.patch_embed3.norm.{param}",
    "patch_embed4.{param}": "encoder.patch_embed4.{param}",
    **_CONV_BLOCKS,
    **_BLOCKS,
    "norm.{param}": "encoder.norm.{param}",
    "stage1_output_decode.{param}": "stage1_output_decode.{param}",
    "stage2_output_decode.{param}": "stage2_output_decode.{param}",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed.{param}": "decoder.decoder_embed.{param}",
    "decoder_norm.{param}": "decoder.decoder_norm.{param}",
    "decoder_pred.{param}": "decoder.decoder_pred.{param}",
    "fc_norm.{param}": "head.norm.{param}",
    "head.{param}": "head.fc.{param}",
}

FORMAT = Format(
    name="official", marks={"patch_embed1.proj.weight": 4, "blocks1.0.conv1.weight": 4}, names=NAMES
)
