"""A pyramid by the name of its encoder, from weights of any format that conversion reads."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from fcmae.convert import Architecture, load_weights
from fcmae.convert.networks.convmae import ConvMAEArchitecture
from fcmae.convert.networks.network import Network
from fcmae.convert.networks.vit import ViTArchitecture
from fcmae.downstream.pyramid.base import FeaturePyramid
from fcmae.downstream.pyramid.convnextv2 import ConvNeXtV2Pyramid
from fcmae.downstream.pyramid.transformer import ConvMAEPyramid, PyramidPositions, ViTPyramid, token_grid
from fcmae.models import (
    ConvMAEEncoder,
    ConvNeXtV2Encoder,
    Encoder,
    ViTEncoder,
    require_name,
)
from fcmae.models.position import sincos_positions
from fcmae.training.classifier import open_network

_CONVMAE_WINDOW = 16
_NETWORKS = {"convnextv2": Architecture, "convmae": ConvMAEArchitecture, "vit": ViTArchitecture}


def create_pyramid(
    backbone: str,
    *,
    weights: str | Path | Mapping[str, Any] | None = None,
    description: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    drop_path: float = 0.0,
    num_heads: int | None = None,
    window_size: int | None = None,
    global_blocks: tuple[int, ...] | None = None,
    positions: PyramidPositions = "interpolated",
) -> FeaturePyramid:
    """A feature pyramid on an encoder, with pretrained weights where there are some.

    Sizes that are no preset's are taken from the weights, as in fine-tuning.

    Args:
        backbone: Name of a preset, see `create_backbone`.
        weights: A pretraining or fine-tuned checkpoint, a run folder, converted weights, or what such a file
            holds; None: random.
        description: A pyramid's own, to build it again without its weights.
        image_size: Pixels that the tables of position embeddings are made for; images of any size go
            through. Not of ConvNeXt V2, nor the options below.
        in_chans: Channels of the images.
        drop_path: Stochastic depth of the last block, rising linearly.
        num_heads: Attention heads; None: the preset's.
        window_size: Tokens along the side of an attention window; 0: all attention is global. None: 16 for
            ConvMAE, as in its code for detection, 0 for ViT.
        global_blocks: Blocks with global attention, counted from 0. None: the first, the last and two between
            them: of 11 blocks 0, 3, 6 and 10 (the paper counts from 1).
        positions: "interpolated" absolute positions, "relative" ones, or "both".
    Raises:
        InputError: unknown backbone, weights that cannot be read or do not fit, or options that do not.
    Paper: Gao et al. 2022, ConvMAE, section 3.3; Li et al. 2022, ViTDet.
    """
    require_name("positions", "a kind of position embedding", positions, get_args(PyramidPositions))
    if description is None:
        network, source, heads = open_network(backbone, weights, in_chans=in_chans, num_heads=num_heads)
    else:
        fields, source, heads = description["network"], None, description["num_heads"]
        network = _NETWORKS[description["family"]](**fields)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if source is None and not isinstance(network, Architecture):
        network = replace(network, grid=token_grid(size))  # pyright: ignore[reportArgumentType]
    encoder = _create_encoder(network, heads, drop_path)
    if source is not None:
        load_weights(encoder, source.without("head.", "encoder.norm."), source=source.format.name)
    described = {
        "family": next(name for name, kind in _NETWORKS.items() if isinstance(network, kind)),
        "network": asdict(network),  # pyright: ignore[reportArgumentType]
        "num_heads": heads,
    }
    if isinstance(encoder, ConvNeXtV2Encoder):
        return ConvNeXtV2Pyramid(encoder, description=described)
    options: dict[str, Any] = {
        "image_size": size,
        "global_blocks": global_blocks,
        "positions": positions,
        "description": described,
    }
    if isinstance(encoder, ConvMAEEncoder):
        window = _CONVMAE_WINDOW if window_size is None else window_size
        return ConvMAEPyramid(encoder, window_size=window, **options)
    assert isinstance(encoder, ViTEncoder)
    return ViTPyramid(encoder, window_size=window_size or 0, **options)


def _create_encoder(network: Network, num_heads: int, drop_path: float) -> Encoder:
    """Our encoder with random weights, its position embeddings of the network's grid, without a last norm."""
    if isinstance(network, Architecture):
        return network.create_encoder(drop_path=drop_path)
    options: dict[str, Any] = {"num_heads": num_heads, "in_chans": network.in_chans, "drop_path": drop_path}
    if isinstance(network, ViTArchitecture):
        encoder = ViTEncoder(
            (network.depth,),
            (network.dim,),
            stem_stride=network.patch_size,
            mlp_ratio=network.mlp_ratio,
            **options,
        )
        prefix = 1
    else:
        assert isinstance(network, ConvMAEArchitecture)
        encoder = ConvMAEEncoder(
            network.depths,
            network.dims,
            mlp_ratio=network.mlp_ratio,
            kernel_size=network.kernel_size,
            **options,
        )
        prefix = 0
    encoder.grid = network.grid  # pyright: ignore[reportAttributeAccessIssue]
    encoder.pos_embed = sincos_positions(network.grid, encoder.dims[-1], prefix=prefix)
    encoder.set_submodule("norm", nn.Identity())
    return encoder
