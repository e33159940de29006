"""MAE's pretraining checkpoint: the encoder under timm's names, and a decoder beside it."""

from fcmae.convert.formats.format import Format
from fcmae.convert.formats.vit import timm

NAMES = {
    **{theirs: ours for theirs, ours in timm.NAMES.items() if ours.startswith("encoder.")},
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed.{param}": "decoder.decoder_embed.{param}",
    "decoder_blocks.{block}.norm1.{param}": "decoder.decoder_blocks.{block}.norm1.{param}",
    "decoder_blocks.{block}.attn.qkv.{param}": "decoder.decoder_blocks.{block}.attn.qkv.{param}",
    "decoder_blocks.{block}.attn.proj.{param}": "decoder.decoder_blocks.{block}.attn.proj.{param}",
    "decoder_blocks.{block}.norm2.{param}": "decoder.decoder_blocks.{block}.norm2.{param}",
    "decoder_blocks.{block}.mlp.fc1.{param}": "decoder.decoder_blocks.{block}.mlp.fc1.{param}",
    "decoder_blocks.{block}.mlp.fc2.{param}": "decoder.decoder_blocks.{block}.mlp.fc2.{param}",
    "decoder_norm.{param}": "decoder.decoder_norm.{param}",
    "decoder_pred.{param}": "decoder.decoder_pred.{param}",
}

FORMAT = Format(name="official", marks={**timm.MARKS, "decoder_embed.weight": 2}, names=NAMES)
