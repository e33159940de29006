"""Hugging Face's ViTMAE, ViT and ViTMSN, as their files name the weights.

Version 5 names them otherwise in memory and translates files when it reads and writes them; both are read,
the files' names are written. Query, key and value are three layers.
"""

from fcmae.convert.formats.format import Format

_FILE = "[vit.]encoder.layer.{block}"
_MEMORY = "[vit.]layers.{block}"
_DECODER = "decoder.decoder_layers.{block}"
# What version 5 writes for the decoder of ViTMAE.
_DECODER_FILE = "decoder.decoder_encoder.layer.{block}"


def _block(file: str, memory: str, ours: str) -> dict[str, str]:
    return {
        f"{file}.layernorm_before.{{param}}": f"{ours}.norm1.{{param}}",
        f"{file}.attention.attention.query+key+value.{{param}}": f"{ours}.attn.qkv.{{param}}",
        f"{file}.attention.output.dense.{{param}}": f"{ours}.attn.proj.{{param}}",
        f"{file}.layernorm_after.{{param}}": f"{ours}.norm2.{{param}}",
        f"{file}.intermediate.dense.{{param}}": f"{ours}.mlp.fc1.{{param}}",
        f"{file}.output.dense.{{param}}": f"{ours}.mlp.fc2.{{param}}",
        f"{memory}.layernorm_before.{{param}}": f"{ours}.norm1.{{param}}",
        f"{memory}.attention.q_proj+k_proj+v_proj.{{param}}": f"{ours}.attn.qkv.{{param}}",
        f"{memory}.attention.o_proj.{{param}}": f"{ours}.attn.proj.{{param}}",
        f"{memory}.layernorm_after.{{param}}": f"{ours}.norm2.{{param}}",
        f"{memory}.mlp.fc1.{{param}}": f"{ours}.mlp.fc1.{{param}}",
        f"{memory}.mlp.fc2.{{param}}": f"{ours}.mlp.fc2.{{param}}",
    }


NAMES = {
    "[vit.]embeddings.cls_token": "encoder.cls_token",
    "[vit.]embeddings.position_embeddings": "encoder.pos_embed",
    "[vit.]embeddings.patch_embeddings.projection.{param}": "encoder.patch_embed.proj.{param}",
    **_block(_FILE, _MEMORY, "encoder.blocks.{block}"),
    "[vit.]layernorm.{param}": "encoder.norm.{param}",
    "classifier.{param}": "head.fc.{param}",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder.decoder_embed.{param}": "decoder.decoder_embed.{param}",
    **_block(_DECODER, _DECODER, "decoder.decoder_blocks.{block}"),
    **_block(_DECODER_FILE, _DECODER_FILE, "decoder.decoder_blocks.{block}"),
    "decoder.decoder_norm.{param}": "decoder.decoder_norm.{param}",
    "decoder.decoder_pred.{param}": "decoder.decoder_pred.{param}",
}

FORMAT = Format(
    name="transformers",
    marks={"[vit.]embeddings.cls_token": 3, "[vit.]embeddings.patch_embeddings.projection.weight": 4},
    names=NAMES,
    dropped={"[vit.]pooler.dense.{param}": "only transformers' ViTModel has a pooler"},
)
