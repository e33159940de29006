"""ConvMAE's encoder: two convolution stages and a transformer stage, on visible patches or whole images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.config import EXECUTIONS, Execution
from fcmae.errors import InputError
from fcmae.masking import space_to_depth
from fcmae.models.blocks import DropPath, pointwise
from fcmae.models.encoder import Encoder
from fcmae.models.position import fit_positions, positions_at, sincos_positions
from fcmae.models.presets import require_name
from fcmae.models.transformer import init_transformer, transformer_blocks
from sparse_ops import (
    ActiveSites,
    DownsampleConv2d,
    Image,
    MaskedImage,
    SparseImage,
    SubmConv2d,
    features_of,
    linear,
    with_features,
)

_STRIDES = (4, 8, 16)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution over features [..., C_in], run as a linear layer with the parameters of nn.Conv2d."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[..., C_in] -> [..., C_out]."""
        return linear(features, self.weight.flatten(1), self.bias)


class ConvMlp(nn.Module):
    """Linear, GELU, linear over features [..., C], stored as 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = PointwiseConv2d(channels, hidden)
        self.fc2 = PointwiseConv2d(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(F.gelu(self.fc1(features)))


class ConvMAEBlock(nn.Module):
    """A transformer block whose attention is a depthwise convolution between two 1x1 ones.

    Only what the depthwise convolution reads is masked: every other layer acts on each site alone.

    Args:
        channels: Width, C.
        kernel_size: Side of the depthwise kernel, odd (the paper: 5).
        mlp_ratio: Width of the hidden features as a multiple of C (the paper: 4).
        drop_path: Probability of dropping each of the two branches.
        backend: Engine of the sparse operations.
    Paper: Gao et al. 2022, ConvMAE, section 3.2.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 5,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-5)
        self.conv1 = PointwiseConv2d(channels, channels)
        self.conv2 = PointwiseConv2d(channels, channels)
        self.attn = SubmConv2d(channels, channels, kernel_size, groups=channels, backend=backend)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=1e-5)
        self.mlp = ConvMlp(channels, mlp_ratio * channels)

    def forward(self, x: Image) -> Image:
        """C channels to C channels at the same sites."""
        branch = self.attn(pointwise(self.conv1, pointwise(self.norm1, x)))
        x = with_features(x, features_of(x) + self.drop_path(pointwise(self.conv2, branch)))
        branch = pointwise(self.mlp, pointwise(self.norm2, x))
        return with_features(x, features_of(x) + self.drop_path(branch))


class ConvPatchEmbed(nn.Module):
    """A convolution with kernel = stride, LayerNorm and GELU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, backend: str = "auto") -> None:
        super().__init__()
        self.proj = DownsampleConv2d(in_channels, out_channels, stride, backend=backend)
        self.norm = nn.LayerNorm(out_channels, eps=1e-5)

    def forward(self, x: Image) -> Image:
        """Sites `stride` times coarser."""
        return self._activate(self.proj(x))

    def from_squares(self, x: Image) -> Image:
        """The same of squares of pixels, which are sites of the output already."""
        projected = linear(features_of(x), self.proj.weight.flatten(1), self.proj.bias)
        return self._activate(with_features(x, projected))

    def _activate(self, x: Image) -> Image:
        return with_features(x, F.gelu(self.norm(features_of(x))))


class ConvMAEEncoder(Encoder):
    """Convolution blocks at strides 4 and 8, transformer blocks at stride 16, under the original's names.

    `norm` belongs behind the last stage, and `forward` leaves it to the caller: pretraining adds the first
    two stages before it, `embed` and a classifier average the tokens.

    Args:
        depths: Blocks of the three stages.
        dims: Width of the three stages.
        num_heads: Attention heads of the last stage, a divisor of its width.
        mlp_ratio: Width of the hidden features of a block as a multiple of its own, one for all stages or one
            each.
        in_chans: Channels of the images.
        kernel_size: Side of the depthwise kernels, odd (the paper: 5; it compares 3, 5, 7 and 9).
        drop_path: Stochastic depth of the last block, rising linearly from 0.
        backend: Engine of the sparse operations.
    Raises:
        InputError: not three stages, or numbers that do not fit together.
    Paper: Gao et al. 2022, ConvMAE, section 3.2.
    """

    pos_embed: Tensor

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        *,
        num_heads: int,
        mlp_ratio: int | tuple[int, ...] = 4,
        in_chans: int = 3,
        kernel_size: int = 5,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(depths, dims, in_chans=in_chans, strides=_STRIDES)
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise InputError(f"kernel_size: expected an odd number, got {kernel_size}.")
        ratios = (mlp_ratio,) * len(_STRIDES) if isinstance(mlp_ratio, int) else tuple(mlp_ratio)
        if len(ratios) != len(_STRIDES):
            raise InputError(f"mlp_ratio: expected one number or one a stage, got {ratios}.")
        rates = tuple(drop_path * block / max(1, sum(depths) - 1) for block in range(sum(depths)))
        first, second = depths[0], depths[0] + depths[1]
        self.grid = (14, 14)  # of 224 pixels, which the original is bound to
        self.fixed = True

        def conv_blocks(stage: int, stage_rates: tuple[float, ...]) -> nn.Sequential:
            return nn.Sequential(
                *(
                    ConvMAEBlock(
                        dims[stage],
                        kernel_size=kernel_size,
                        mlp_ratio=ratios[stage],
                        drop_path=rate,
                        backend=backend,
                    )
                    for rate in stage_rates
                )
            )

        self.register_buffer("pos_embed", sincos_positions(self.grid, dims[2]))
        self.patch_embed1 = ConvPatchEmbed(in_chans, dims[0], _STRIDES[0])
        self.patch_embed2 = ConvPatchEmbed(dims[0], dims[1], 2, backend=backend)
        self.patch_embed3 = ConvPatchEmbed(dims[1], dims[2], 2, backend=backend)
        self.patch_embed4 = nn.Linear(dims[2], dims[2])
        self.blocks1 = conv_blocks(0, rates[:first])
        self.blocks2 = conv_blocks(1, rates[first:second])
        self.blocks3 = transformer_blocks(
            depths[2], dims[2], num_heads=num_heads, mlp_ratio=ratios[2], drop_path=rates[second:]
        )
        self.norm = nn.LayerNorm(dims[2], eps=1e-6)
        # As in the original: PyTorch's own initialisation in all other convolutions.
        self.patch_embed4.apply(init_transformer)
        self.blocks3.apply(init_transformer)
        nn.init.xavier_uniform_(self.patch_embed3.proj.weight.data.flatten(1))

    def forward(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        *,
        sites: ActiveSites | None = None,
        execution: Execution = "sparse",
    ) -> list[Image]:
        """Features of every stage, those of the last before `norm`.

        Args:
            images: [B, in_chans, H, W], H and W divisible by 16.
            visible: Visible patches, bool [B, Gh, Gw]; None: all of them, as dense maps. Images may keep
                different numbers; reading it waits for the device once.
            sites: The first stage's active sites, instead of `visible`; nothing waits. They need not be
                aligned to the last stage: a coarser site then sees its active children only.
            execution: "sparse"; "masked_dense", the same numbers, as the original computes them; or
                "leaky_dense", whole images in the convolution stages, the paper's "without masked
                convolution". The transformer sees the visible tokens alone in each.
        Returns:
            The first two stages as SparseImage (sparse), MaskedImage (masked_dense) or tensor [B, h, w, C];
            the last as a SparseImage, or of whole images as a tensor.
        Raises:
            InputError: sides, channels or the patch grid do not fit.
        """
        require_name("execution", "a way to run the encoder", execution, EXECUTIONS)
        sites = self.first_sites(images, visible, sites)
        first, second = self.convolve(images, sites, execution)
        x = self.patch_embed3(second)
        if sites is not None and not isinstance(x, SparseImage):
            x = SparseImage.from_dense(features_of(x), sites.downsample(2).downsample(2))
        embedded = linear(features_of(x), self.patch_embed4.weight, self.patch_embed4.bias)
        return [first, second, self._attend(with_features(x, embedded))]

    def embed(self, images: Tensor, *, sites: ActiveSites | None = None) -> Tensor:
        """One vector an image, [B, C]: the norm of the visible tokens' mean, as a classifier takes it."""
        return self.norm(super().embed(images, sites=sites))

    def convolve(
        self, images: Tensor, sites: ActiveSites | None, execution: Execution
    ) -> tuple[Image, Image]:
        """The two convolution stages; see `forward`."""
        x: Image = space_to_depth(images, _STRIDES[0])
        if sites is not None and execution == "sparse":
            x = SparseImage.from_dense(x, sites)
        elif sites is not None and execution == "masked_dense":
            x = MaskedImage(x, sites)
        first = self.blocks1(self.patch_embed1.from_squares(x))
        return first, self.blocks2(self.patch_embed2(first))

    def _attend(self, x: Image) -> Image:
        """Add the positions and run the transformer blocks, each image by itself."""
        assert not isinstance(x, MaskedImage)
        grid = (x.shape[1], x.shape[2]) if isinstance(x, Tensor) else (x.sites.height, x.sites.width)
        positions = positions_at(self.pos_embed, grid, own_grid=self.grid, prefix=0, fixed=self.fixed)[0]
        if isinstance(x, Tensor):
            return self.blocks3(x.flatten(1, 2) + positions).unflatten(1, grid)
        rows = x.features + positions.index_select(0, x.sites.site_of_row % (grid[0] * grid[1]))
        if x.sites.rows_per_image is not None:
            tokens = rows.unflatten(0, (x.sites.batch_size, x.sites.rows_per_image))
            return x.with_features(self.blocks3(tokens).flatten(0, 1))
        return x.with_features(self._attend_ragged(rows, x.sites))

    def _attend_ragged(self, rows: Tensor, sites: ActiveSites) -> Tensor:
        """The transformer blocks on images of different numbers of tokens, padded to the largest."""
        counts = sites.row_offsets.diff()
        longest = int(counts.max())
        row = torch.arange(sites.num_sites, device=rows.device)
        slot = row - sites.row_offsets[sites.image_of_row] + sites.image_of_row * longest
        padded = rows.new_zeros(sites.batch_size * longest, rows.shape[1]).index_copy(0, slot, rows)
        steps = torch.arange(longest, device=rows.device)
        # An image without tokens attends to padding, since a softmax over nothing is not a number.
        attended = (steps < counts[:, None].clamp(min=1))[:, None, None]
        tokens = padded.unflatten(0, (sites.batch_size, longest))
        for block in self.blocks3:
            tokens = block(tokens, attn_mask=attended)
        return tokens.flatten(0, 1).index_select(0, slot)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}pos_embed"
        if key in state_dict:
            fitted, self.fixed = fit_positions(state_dict[key], self.pos_embed, own_grid=self.grid, prefix=0)
            state_dict = {**state_dict, key: fitted}
        super()._load_from_state_dict(state_dict, prefix, *args)
