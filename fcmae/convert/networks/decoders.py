"""Decoders of the sizes that a pretraining checkpoint's weights show."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fcmae.convert.networks.network import weight_of
from fcmae.models import ConvNeXtDecoder, Encoder, TransformerDecoder, UNetDecoder

_BLOCK = re.compile(r"decoder\.blocks\.(\d+)\.")
_UNET_BLOCK = re.compile(r"decoder\.stages\.0\.blocks\.(\d+)\.")
_TRANSFORMER_BLOCK = re.compile(r"decoder\.decoder_blocks\.(\d+)\..+")


def decoder_like(decoder: Mapping[str, Tensor], encoder: Encoder) -> nn.Module:
    """FCMAE's decoder, of any kind, of the sizes that the weights `decoder.*` have.

    Raises:
        InputError: a weight that tells a size is missing.
    """
    if any(key.startswith("decoder.decoder_") for key in decoder):
        return transformer_like(decoder, encoder.dims[-1])
    if any(key.startswith("decoder.stages.") for key in decoder):
        return UNetDecoder(
            encoder.dims,
            encoder.strides,
            in_chans=encoder.in_chans,
            dim=weight_of(decoder, f"decoder.stages.{len(encoder.dims) - 1}.mask_token", 1).shape[0],
            depth=len({found[1] for key in decoder if (found := _UNET_BLOCK.match(key))}),
        )
    return ConvNeXtDecoder(
        encoder.dims[-1],
        weight_of(decoder, "decoder.pred.weight", 2).shape[0],
        dim=weight_of(decoder, "decoder.mask_token", 1).shape[0],
        depth=len({found[1] for key in decoder if (found := _BLOCK.match(key))}),
    )


def transformer_like(decoder: Mapping[str, Tensor], in_channels: int) -> TransformerDecoder:
    """A transformer decoder of the sizes that these weights have; their heads do not show in shapes."""
    made = TransformerDecoder(
        in_channels,
        weight_of(decoder, "decoder.decoder_pred.weight", 2).shape[0],
        grid=(1, 1),
        dim=weight_of(decoder, "decoder.mask_token", 3).shape[2],
        depth=len({found[1] for key in decoder if (found := _TRANSFORMER_BLOCK.fullmatch(key))}),
        num_heads=1,
    )
    made.decoder_pos_embed = torch.empty(weight_of(decoder, "decoder.decoder_pos_embed", 3).shape)
    return made
