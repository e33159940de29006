"""A vision transformer that runs on visible patches only."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from fcmae.errors import InputError
from fcmae.masking import patch_grid, space_to_depth
from fcmae.models.encoder import Encoder
from fcmae.models.position import fit_positions, positions_at, sincos_positions
from fcmae.models.presets import require_name
from fcmae.models.transformer import init_transformer, transformer_blocks
from sparse_ops import ActiveSites, Image, SparseImage, linear

Positions = Literal["fixed", "learnt"]


class ViTEncoder(Encoder):
    """ViT without its head; the state dict has the names of timm's `vit_*`.

    Masked patches are never embedded: a class token and the visible patches go through the blocks. Attention
    needs as many visible patches in every image.

    Args:
        depths: Blocks, one entry.
        dims: Width, one entry.
        num_heads: Attention heads, a divisor of the width.
        in_chans: Channels of the images.
        stem_stride: Pixels per token, timm's `patch_size`.
        mlp_ratio: Width of the hidden features of a block as a multiple of its own.
        drop_path: Stochastic depth of the last block, rising linearly from 0.
        positions: "fixed", sin-cos computed for any grid, or "learnt", interpolated for other grids. Learnt
            ones that are loaded into an encoder of fixed ones are used, and interpolated, too.
    Raises:
        InputError: more than one stage, or numbers that do not fit together.
    Paper: Dosovitskiy et al. 2021, ViT; He et al. 2021, MAE, section 3 (visible patches only).
    """

    pos_embed: Tensor

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        *,
        num_heads: int,
        in_chans: int = 3,
        stem_stride: int = 16,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        positions: Positions = "fixed",
    ) -> None:
        super().__init__(depths, dims, in_chans=in_chans, strides=(stem_stride,))
        require_name("positions", "a kind of position embedding", positions, get_args(Positions))
        if stem_stride < 1:
            raise InputError(f"stem_stride: expected at least 1 pixel per token, got {stem_stride}.")
        depth, dim = self.depths[0], self.dims[0]
        side = max(1, 224 // stem_stride)
        self.grid = (side, side)
        self.fixed = positions == "fixed"
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        embedding = sincos_positions(self.grid, dim, prefix=1)
        if self.fixed:
            self.register_buffer("pos_embed", embedding)
        else:
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(embedding, std=0.02))
        self.patch_embed = PatchEmbed(None, stem_stride, in_chans, dim)
        rates = tuple(drop_path * block / max(1, depth - 1) for block in range(depth))
        self.blocks = transformer_blocks(
            depth, dim, num_heads=num_heads, mlp_ratio=mlp_ratio, drop_path=rates
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.apply(init_transformer)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))  # a linear layer, as in MAE
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(
        self, images: Tensor, visible: Tensor | None = None, *, sites: ActiveSites | None = None
    ) -> list[Image]:
        """The patches' tokens after the last norm, the class token left out.

        Args:
            images: [B, in_chans, H, W], H and W divisible by `max_stride`.
            visible: Visible patches, bool [B, Gh, Gw], as many in every image; None: all of them. Reading it
                waits for the device once.
            sites: The visible sites of one token each, instead of `visible`; nothing waits.
        Returns:
            One entry: a SparseImage, or of whole images a tensor [B, Gh, Gw, C].
        Raises:
            InputError: sides, channels or the patch grid do not fit, or images keep different numbers.
        """
        if visible is not None:
            sites = self.first_sites(images, visible, sites)
        tokens = self.forward_tokens(images, sites=sites)[:, 1:]
        if sites is not None:
            return [SparseImage(tokens.flatten(0, 1), sites)]
        return [tokens.unflatten(1, self.grid_of(images))]

    def embed(self, images: Tensor, *, sites: ActiveSites | None = None) -> Tensor:
        """One vector an image, [B, C]: the class token after the last norm, of whole or masked images."""
        return self.forward_tokens(images, sites=sites)[:, 0]

    def forward_tokens(self, images: Tensor, *, sites: ActiveSites | None = None) -> Tensor:
        """The class token and the patches' tokens after the last norm, [B, 1 + K, C], ordered as `sites`.

        Args:
            images: As for `forward`.
            sites: The visible sites; None: all of them, in row-major order.
        Raises:
            InputError: as `forward`.
        """
        self.first_sites(images, None, sites)
        squares = space_to_depth(images, self.max_stride)
        positions = positions_at(
            self.pos_embed, self.grid_of(images), own_grid=self.grid, prefix=1, fixed=self.fixed
        )
        first, rest = positions[:, :1], positions[:, 1:]
        if sites is None:
            pixels = squares.flatten(1, 2)
        else:
            kept = _equal_count(sites)
            pixels = SparseImage.from_dense(squares, sites).features.unflatten(0, (len(images), kept))
            site = sites.site_of_row % rest.shape[1]
            rest = rest[0].index_select(0, site).unflatten(0, (len(images), kept))
        proj = self.patch_embed.proj
        patches = linear(pixels, proj.weight.flatten(1), proj.bias) + rest
        tokens = torch.cat([(self.cls_token + first).expand(len(images), -1, -1), patches], dim=1)
        return self.norm(self.blocks(tokens))

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Tokens of each image, (Gh, Gw)."""
        return patch_grid((images.shape[2], images.shape[3]), self.max_stride)

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Keep in the state dict the position embeddings of images of this size, (H, W) in pixels.

        Any other size still works; learnt embeddings are interpolated, here once and for all.
        """
        grid = patch_grid(image_size, self.max_stride)
        with torch.no_grad():
            embedding = positions_at(self.pos_embed, grid, own_grid=self.grid, prefix=1, fixed=self.fixed)
        trained = isinstance(self.pos_embed, nn.Parameter)
        self.pos_embed = nn.Parameter(embedding) if trained else embedding
        self.grid = grid

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}pos_embed"
        if key in state_dict:
            fitted, sincos = fit_positions(state_dict[key], self.pos_embed, own_grid=self.grid, prefix=1)
            self.fixed = sincos and not isinstance(self.pos_embed, nn.Parameter)
            state_dict = {**state_dict, key: fitted}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _equal_count(sites: ActiveSites) -> int:
    """Visible sites of each image.

    Raises:
        InputError: images keep different numbers.
    """
    if sites.rows_per_image is None:
        counts = sites.row_offsets.diff()
        raise InputError(
            "visible: expected as many visible patches in every image, as attention needs, got "
            f"{int(counts.min())} to {int(counts.max())}. Make masks of one count, or take a ConvNet."
        )
    return sites.rows_per_image
