"""Encoders to evaluate, out of any checkpoint that conversion reads."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fcmae.convert import Architecture, load_weights, open_source
from fcmae.convert.networks.convmae import ConvMAEArchitecture
from fcmae.convert.networks.network import Network
from fcmae.convert.networks.vit import ViTArchitecture
from fcmae.errors import InputError
from fcmae.models import ConvMAEEncoder, Encoder, ViTEncoder
from fcmae.models.position import sincos_positions
from sparse_ops import ActiveSites


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """An encoder in evaluation mode, and what to call it."""

    name: str
    encoder: Encoder
    network: Network
    fingerprint: str
    """Of everything that decides its features: the architecture and every weight."""
    file: str
    """The file that was read; empty for random weights."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """`data` of the config that it was trained with; empty where the file has none."""

    @property
    def parameters(self) -> int:
        """Of the encoder."""
        return sum(parameter.numel() for parameter in self.encoder.parameters())


class _PatchPoolingViT(ViTEncoder):
    """A ViT that was fine-tuned with averaged patches: its class token was never trained."""

    fc_norm: nn.LayerNorm

    def embed(self, images: Tensor, *, sites: ActiveSites | None = None) -> Tensor:
        """The patches' mean after the classifier's norm, [B, C]."""
        return self.fc_norm(self.forward_tokens(images, sites=sites)[:, 1:].mean(dim=1))


class _PatchPoolingConvMAE(ConvMAEEncoder):
    """A fine-tuned ConvMAE, whose norm has the classifier's name."""

    fc_norm: nn.LayerNorm

    def embed(self, images: Tensor, *, sites: ActiveSites | None = None) -> Tensor:
        """The tokens' mean after the classifier's norm, [B, C]."""
        return self.fc_norm(Encoder.embed(self, images, sites=sites))


def load_encoder(path: str | Path, *, in_chans: int, num_heads: int | None = None) -> LoadedEncoder:
    """The encoder of a checkpoint; of MSN's, the target network, the one that its paper evaluates.

    A classifier's head is left out; where it averages patches and has a norm of its own, that norm stays.

    Args:
        path: A run folder or a file, of any format that `fcmae convert` reads.
        in_chans: Channels of the images.
        num_heads: Attention heads where sizes that are no preset's leave them open.
    Raises:
        InputError: unreadable, no such format, other channels, or heads that nothing tells.
    """
    source = open_source(path)
    network = source.architecture()
    if network.in_chans != in_chans:
        raise InputError(
            f"data.in_chans: expected that of {path}, {network.in_chans}, got {in_chans}. "
            f"Set --data.in_chans={network.in_chans}."
        )
    encoder = _create(network, num_heads, path)
    load_weights(encoder, source.weights, source=source.format.name)
    return LoadedEncoder(
        name=str(path),
        encoder=encoder.eval(),
        network=network,
        fingerprint=fingerprint(encoder, network),
        file=str(source.path),
        data=source.config.get("data", {}),
    )


def random_encoder(like: LoadedEncoder, *, seed: int, num_heads: int | None = None) -> LoadedEncoder:
    """The same architecture as it is before pretraining.

    Args:
        like: Whose architecture.
        seed: Of the weights; PyTorch's global generator is left as it was.
        num_heads: As for `load_encoder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _create(like.network, num_heads, like.name).eval()
    return LoadedEncoder(
        name=f"random {like.network.backbone}",
        encoder=encoder,
        network=like.network,
        fingerprint=fingerprint(encoder, like.network),
        file="",
    )


def fingerprint(encoder: nn.Module, network: Network) -> str:
    """A hash of the architecture and of every weight's name, dtype, shape and value."""
    digest = hashlib.blake2b(f"{network!r} {heads_of(encoder)}".encode(), digest_size=16)
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def heads_of(encoder: nn.Module) -> list[int]:
    """Attention heads of each block that has them; they leave no trace in the weights."""
    found = [getattr(module, "num_heads", None) for module in encoder.modules()]
    return [heads for heads in found if isinstance(heads, int)]


def _create(network: Network, num_heads: int | None, path: str | Path) -> Encoder:
    """Our encoder with random weights, its position embeddings those of the checkpoint's grid."""
    if isinstance(network, Architecture):
        return network.create_encoder()
    assert isinstance(network, ViTArchitecture | ConvMAEArchitecture)
    heads = network.num_heads or num_heads
    if heads is None:
        raise InputError(
            f"num_heads: expected attention heads for {path}, got weights of no preset's sizes, which do not "
            "tell. Set --num_heads=N."
        )
    options: dict[str, Any] = {"num_heads": heads, "in_chans": network.in_chans}
    if isinstance(network, ViTArchitecture):
        kind = _PatchPoolingViT if network.pools_patches else ViTEncoder
        encoder = kind(
            (network.depth,),
            (network.dim,),
            stem_stride=network.patch_size,
            mlp_ratio=network.mlp_ratio,
            **options,
        )
        encoder.set_image_size(cast(tuple[int, int], network.input_size[1:]))
    else:
        kind = _PatchPoolingConvMAE if network.pools_patches else ConvMAEEncoder
        encoder = kind(
            network.depths,
            network.dims,
            mlp_ratio=network.mlp_ratio,
            kernel_size=network.kernel_size,
            **options,
        )
        encoder.grid = network.grid  # pyright: ignore[reportAttributeAccessIssue]
        encoder.pos_embed = sincos_positions(network.grid, network.dims[2])
    if network.pools_patches:
        encoder.set_submodule("norm", nn.Identity())
        encoder.fc_norm = nn.LayerNorm(encoder.dims[-1], eps=1e-6)
    return encoder
