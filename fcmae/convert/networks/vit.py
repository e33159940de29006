"""Which ViT a checkpoint holds, from its config or from the shapes of its weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fcmae.convert.networks.decoders import transformer_like
from fcmae.convert.networks.network import shapes_of, weight_of
from fcmae.errors import InputError
from fcmae.masking import patch_grid
from fcmae.models import PRESETS, ViTEncoder
from fcmae.models.presets import ViTPreset

_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\..+")
_PRESETS = {name: preset for name, preset in PRESETS.items() if isinstance(preset, ViTPreset)}


@dataclass(frozen=True, kw_only=True)
class ViTArchitecture:
    """A ViT with a class token: the name of a preset, and its sizes."""

    backbone: str
    in_chans: int = 3
    depth: int
    dim: int
    num_heads: int | None
    """None: no preset has these sizes, and weights alone do not tell."""
    patch_size: int
    grid: tuple[int, int]
    """Patches that the position embeddings are made for."""
    mlp_ratio: int = 4
    pools_patches: bool = False
    """A classifier that averages the patches before a norm of its own, instead of reading the class token."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks, one entry."""
        return (self.depth,)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the position embeddings are made for."""
        return self.in_chans, self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def heads(self) -> int:
        """Attention heads.

        Raises:
            InputError: no preset has these sizes, and weights alone do not tell.
        """
        if self.num_heads is None:
            raise InputError(
                f"num_heads: expected a preset of depth {self.depth} and width {self.dim} or a checkpoint "
                "with its config, got weights alone, which do not tell. Add --no-verify."
            )
        return self.num_heads

    def create_encoder(self) -> ViTEncoder:
        """Our encoder, with position embeddings as they are in the file."""
        encoder = ViTEncoder(
            (self.depth,),
            (self.dim,),
            num_heads=self.num_heads or 1,
            in_chans=self.in_chans,
            stem_stride=self.patch_size,
            mlp_ratio=self.mlp_ratio,
            positions="learnt",
        )
        encoder.grid = self.grid
        encoder.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], self.dim))
        if self.pools_patches:
            encoder.set_submodule("norm", nn.Identity())  # the classifier has its own behind the pooling
        return encoder

    def create_timm(self, **options: Any) -> VisionTransformer:
        """timm's model of this architecture, with random weights; options as num_classes, drop_path_rate."""
        return VisionTransformer(**{**self.timm_options(), "num_heads": self.num_heads or 1}, **options)

    def timm_options(self) -> dict[str, Any]:
        """Keyword arguments of timm's VisionTransformer; presets of ours need not have a name in timm."""
        return {
            "img_size": self.input_size[1:],
            "patch_size": self.patch_size,
            "in_chans": self.in_chans,
            "embed_dim": self.dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "global_pool": "avg" if self.pools_patches else "token",
        }

    def our_shapes(self, *, num_classes: int, decoder: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Our name -> shape, see Network."""
        with torch.device("meta"):
            parts: dict[str, nn.Module] = {"encoder": self.create_encoder()}
            if decoder:
                parts["decoder"] = transformer_like(decoder, self.dim)
            if num_classes:
                parts["head.fc"] = nn.Linear(self.dim, num_classes)
                if self.pools_patches:
                    parts["head.norm"] = nn.LayerNorm(self.dim)
        return shapes_of(parts)

    def timm_shapes(self, *, num_classes: int) -> dict[str, torch.Size]:
        """Name -> shape of timm's model; nothing is allocated."""
        with torch.device("meta"):
            return shapes_of({"": self.create_timm(num_classes=num_classes)})

    def transformers_options(self) -> dict[str, Any]:
        """Keyword arguments of transformers.ViTConfig."""
        return {
            "hidden_size": self.dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.dim * self.mlp_ratio,
            "image_size": self.input_size[1:],
            "patch_size": self.patch_size,
            "num_channels": self.in_chans,
            "layer_norm_eps": 1e-6,  # its default is 1e-12
        }

    def require_fits(self, target: str) -> None:
        """Raise InputError where the target's library can build no such network."""
        if self.pools_patches and target == "transformers":
            raise InputError(
                "target: expected a classifier of the class token for transformers, got one of averaged "
                "patches. Use --target timm."
            )

    def call(self, target: str, out: str, *, num_classes: int) -> str:
        """How a reader makes the model that converted weights at `out` fit, see Network."""
        if target == "timm":
            wanted = {**self.timm_options(), "num_classes": num_classes}
            options = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
            return f"timm.models.VisionTransformer({options})"
        if target == "transformers":
            labels = {"num_labels": num_classes} if num_classes else {}
            wanted = {**self.transformers_options(), **labels}
            options = ", ".join(f"{name}={value}" for name, value in wanted.items())
            return f"transformers.ViTConfig({options})"
        return f'fcmae.load_weights(module, "{out}")'


def from_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ViTArchitecture:
    """The architecture that a pretraining checkpoint's config declares.

    Raises:
        InputError: the position embeddings are neither of its images nor of a square grid.
    """
    model, data = config["model"], config["data"]
    preset = _PRESETS[model["backbone"]]
    patch_size = model.get("stem_stride") or preset.stem_stride
    return ViTArchitecture(
        backbone=model["backbone"],
        in_chans=data["in_chans"],
        depth=(model.get("depths") or preset.depths)[0],
        dim=(model.get("dims") or preset.dims)[0],
        num_heads=model.get("num_heads") or preset.num_heads,
        patch_size=patch_size,
        grid=_grid(weights, data["image_size"], patch_size),
    )


def from_shapes(
    weights: Mapping[str, Tensor], image_size: int | Sequence[int] | None = None
) -> ViTArchitecture:
    """The architecture that weights under our names have.

    Args:
        weights: All of the encoder's.
        image_size: Of the images that the network was trained on, where it is known.
    Raises:
        InputError: a weight that tells a size is missing, or the position embeddings are neither of these
            images nor of a square grid.
    """
    stem = weight_of(weights, "encoder.patch_embed.proj.weight", 4)
    hidden = weight_of(weights, "encoder.blocks.0.mlp.fc1.weight", 2).shape[0]
    depth = len({found[1] for key in weights if (found := _BLOCK.fullmatch(key))})
    dim, patch_size = stem.shape[0], stem.shape[3]
    sizes = {
        name: preset
        for name, preset in _PRESETS.items()
        if (preset.depths, preset.dims) == ((depth,), (dim,))
    }
    same = [name for name, preset in sizes.items() if preset.stem_stride == patch_size]
    return ViTArchitecture(
        backbone=(same or [*sizes, "vit"])[0],
        in_chans=stem.shape[1],
        depth=depth,
        dim=dim,
        num_heads=next((preset.num_heads for preset in sizes.values()), None),
        patch_size=patch_size,
        grid=_grid(weights, image_size, patch_size),
        mlp_ratio=hidden // dim,
        pools_patches="head.norm.weight" in weights,
    )


def _grid(
    weights: Mapping[str, Tensor], image_size: int | Sequence[int] | None, patch_size: int
) -> tuple[int, int]:
    """Patches that the position embeddings are made for: those of the images, or of a square."""
    tokens = weight_of(weights, "encoder.pos_embed", 3).shape[1] - 1
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        grid = patch_grid((height, width), patch_size)
        if grid[0] * grid[1] == tokens:
            return grid
    return square_grid(tokens)


def square_grid(patches: int) -> tuple[int, int]:
    """The grid of position embeddings for so many patches.

    Raises:
        InputError: they make no square.
    """
    side = isqrt(patches)
    if side * side != patches:
        raise InputError(
            f"weights: expected position embeddings of a square grid, got those of {patches} patches. "
            "Give a checkpoint with its config."
        )
    return side, side
