"""timm's ViT; MAE's released encoders and classifiers have the same names, and so has our encoder."""

from fcmae.convert.formats.format import Format

NAMES = {
    "cls_token": "encoder.cls_token",
    "pos_embed": "encoder.pos_embed",
    "patch_embed.proj.{param}": "encoder.patch_embed.proj.{param}",
    "blocks.{block}.norm1.{param}": "encoder.blocks.{block}.norm1.{param}",
    "blocks.{block}.attn.qkv.{param}": "encoder.blocks.{block}.attn.qkv.{param}",
    "blocks.{block}.attn.proj.{param}": "encoder.blocks.{block}.attn.proj.{param}",
    "blocks.{block}.norm2.{param}": "encoder.blocks.{block}.norm2.{param}",
    "blocks.{block}.mlp.fc1.{param}": "encoder.blocks.{block}.mlp.fc1.{param}",
    "blocks.{block}.mlp.fc2.{param}": "encoder.blocks.{block}.mlp.fc2.{param}",
    "norm.{param}": "encoder.norm.{param}",
    "fc_norm.{param}": "head.norm.{param}",
    "head.{param}": "head.fc.{param}",
}
MARKS = {"cls_token": 3, "blocks.0.attn.qkv.weight": 2}

FORMAT = Format(name="timm", marks=MARKS, lacks=("decoder_embed.weight", "fc.fc1.weight"), names=NAMES)
