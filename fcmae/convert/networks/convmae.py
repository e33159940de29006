"""Which ConvMAE a checkpoint holds, from its config or from the shapes of its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcmae.convert.networks.decoders import transformer_like
from fcmae.convert.networks.network import shapes_of, weight_of
from fcmae.convert.networks.vit import square_grid
from fcmae.errors import InputError
from fcmae.models import PRESETS, ConvMAEEncoder
from fcmae.models.presets import ConvMAEPreset
from sparse_ops import DownsampleConv2d

_BLOCK = re.compile(r"encoder\.blocks([123])\.(\d+)\..+")
_PRESETS = {name: preset for name, preset in PRESETS.items() if isinstance(preset, ConvMAEPreset)}
_STRIDE = 16
_FUSED = {1: 4, 2: 2}  # sites of a stage along one of the last stage


@dataclass(frozen=True, kw_only=True)
class ConvMAEArchitecture:
    """A ConvMAE encoder: the name of a preset, and its sizes."""

    backbone: str
    in_chans: int = 3
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_heads: int | None
    """None: no preset has these sizes, and weights alone do not tell."""
    mlp_ratio: tuple[int, ...] = (4, 4, 4)
    kernel_size: int = 5
    grid: tuple[int, int] = (14, 14)
    """Patches that the position embeddings are made for."""
    pools_patches: bool = False
    """A classifier that averages the patches before a norm of its own."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the position embeddings are made for."""
        return self.in_chans, self.grid[0] * _STRIDE, self.grid[1] * _STRIDE

    def heads(self) -> int:
        """Attention heads.

        Raises:
            InputError: no preset has these sizes, and weights alone do not tell.
        """
        if self.num_heads is None:
            raise InputError(
                f"num_heads: expected a preset of depths {self.depths} and widths {self.dims} or a "
                "checkpoint with its config, got weights alone, which do not tell. Add --no-verify."
            )
        return self.num_heads

    def create_encoder(self) -> ConvMAEEncoder:
        """Our encoder."""
        encoder = ConvMAEEncoder(
            self.depths,
            self.dims,
            num_heads=self.num_heads or 1,
            mlp_ratio=self.mlp_ratio,
            in_chans=self.in_chans,
            kernel_size=self.kernel_size,
        )
        encoder.grid = self.grid  # pyright: ignore[reportAttributeAccessIssue]
        encoder.pos_embed = torch.empty(1, self.grid[0] * self.grid[1], self.dims[2])
        if self.pools_patches:
            encoder.set_submodule("norm", nn.Identity())  # the classifier has its own behind the pooling
        return encoder

    def create_timm(self, **options: Any) -> nn.Module:
        """timm has no ConvMAE."""
        raise InputError(f"timm: expected a network that timm has, got {self.backbone}. Use our encoder.")

    def our_shapes(self, *, num_classes: int, decoder: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Our name -> shape, see Network; `decoder` may hold the fusion of the stages, too."""
        first, second, last = self.dims
        with torch.device("meta"):
            parts: dict[str, nn.Module] = {"encoder": self.create_encoder()}
            if "decoder.mask_token" in decoder:
                parts["decoder"] = transformer_like(decoder, last)
            if any(name.startswith("stage1_output_decode.") for name in decoder):
                parts["stage1_output_decode"] = DownsampleConv2d(first, last, _FUSED[1])
                parts["stage2_output_decode"] = DownsampleConv2d(second, last, _FUSED[2])
            if num_classes:
                parts["head.fc"] = nn.Linear(last, num_classes)
                if self.pools_patches:
                    parts["head.norm"] = nn.LayerNorm(last)
        return shapes_of(parts)

    def timm_shapes(self, *, num_classes: int) -> dict[str, torch.Size]:
        """timm has no ConvMAE."""
        raise InputError(
            f"timm: expected a network that timm has, got {self.backbone}. Use --target official."
        )

    def require_fits(self, target: str) -> None:
        """Every ConvMAE can be written in the original's format."""

    def call(self, target: str, out: str, *, num_classes: int) -> str:
        """How a reader makes the model that converted weights at `out` fit, see Network."""
        if target == "official":
            return f"the authors' ConvViT, depth={list(self.depths)}, embed_dim={list(self.dims)}"
        return f'fcmae.load_weights(module, "{out}")'


def from_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ConvMAEArchitecture:
    """The architecture that a pretraining checkpoint's config declares."""
    model, data = config["model"], config["data"]
    preset = _PRESETS[model["backbone"]]
    return ConvMAEArchitecture(
        backbone=model["backbone"],
        in_chans=data["in_chans"],
        depths=tuple(model.get("depths") or preset.depths),
        dims=tuple(model.get("dims") or preset.dims),
        num_heads=model.get("num_heads") or preset.num_heads,
        mlp_ratio=preset.mlp_ratio,
        kernel_size=model.get("kernel_size") or 5,
        # Those of 224 pixels, whatever the images.
        grid=square_grid(weight_of(weights, "encoder.pos_embed", 3).shape[1]),
    )


def from_shapes(weights: Mapping[str, Tensor]) -> ConvMAEArchitecture:
    """The architecture that weights under our names have.

    Raises:
        InputError: a weight that tells a size is missing, or the position embeddings are of no square grid.
    """
    stems = [weight_of(weights, f"encoder.patch_embed{stage}.proj.weight", 4) for stage in (1, 2, 3)]
    blocks = {(int(found[1]), int(found[2])) for key in weights if (found := _BLOCK.fullmatch(key))}
    depths = tuple(sum(stage == wanted for stage, _ in blocks) for wanted in (1, 2, 3))
    dims = tuple(stem.shape[0] for stem in stems)
    hidden = [
        weight_of(weights, f"encoder.blocks{stage}.0.mlp.fc1.weight", 2, 4).shape[0] for stage in (1, 2, 3)
    ]
    patches = weight_of(weights, "encoder.pos_embed", 3).shape[1]
    same = {
        name: preset for name, preset in _PRESETS.items() if (preset.depths, preset.dims) == (depths, dims)
    }
    return ConvMAEArchitecture(
        backbone=next(iter(same), "convmae"),
        in_chans=stems[0].shape[1],
        depths=depths,
        dims=dims,
        num_heads=next((preset.num_heads for preset in same.values()), None),
        mlp_ratio=tuple(width // dim for width, dim in zip(hidden, dims, strict=True)),
        kernel_size=weight_of(weights, "encoder.blocks1.0.attn.weight", 4).shape[3],
        grid=square_grid(patches),
        pools_patches="head.norm.weight" in weights,
    )
