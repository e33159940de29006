"""ConvNeXt V2 whose one set of parameters runs on visible sites, on masked dense maps and on whole images."""

from typing import cast

from torch import Tensor, nn

from fcmae.config import EXECUTIONS, Execution
from fcmae.errors import InputError
from fcmae.masking import patch_grid, space_to_depth
from fcmae.models.blocks import ConvNeXtV2Block, Downsample
from fcmae.models.presets import require_name
from sparse_ops import ActiveSites, Image, MaskedImage, Scope, SparseImage, features_of, linear, with_features


class Stem(nn.Sequential):
    """A convolution with kernel = stride and a LayerNorm, named as in timm.

    The convolution is run as a linear layer over squares of pixels, so masked pixels take no part.
    """

    def __init__(self, in_chans: int, channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, channels, stride, stride=stride), nn.LayerNorm(channels, eps=1e-6)
        )
        self.stride = stride

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution with kernel = stride."""
        return cast(nn.Conv2d, self[0])

    @property
    def norm(self) -> nn.LayerNorm:
        """The LayerNorm behind it."""
        return cast(nn.LayerNorm, self[1])

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Tensor, sites: ActiveSites | None, execution: Execution
    ) -> Image:
        """Images [B, C, H, W] to sites of `stride` pixels, of which only `sites` exist if given."""
        squares = space_to_depth(images, self.stride)
        x: Image = squares
        if sites is not None:
            if execution == "sparse":
                x = SparseImage.from_dense(squares, sites)
            elif execution == "masked_dense":
                x = MaskedImage(squares, sites)
            else:
                x = squares * sites.active.unsqueeze(-1).to(squares.dtype)
        projected = linear(features_of(x), self.conv.weight.flatten(1), self.conv.bias)
        return with_features(x, self.norm(projected))


class Stage(nn.Module):
    """A downsampling (none in the first stage) and blocks, named as in timm."""

    blocks: nn.Sequential

    def __init__(self, downsample: nn.Module, blocks: list[ConvNeXtV2Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Image) -> Image:
        """The stage's features."""
        return self.blocks(self.downsample(x))


class ConvNeXtV2Encoder(nn.Module):
    """ConvNeXt V2 without its head; the state dict has the names of timm's `convnextv2_*`.

    Linear layers are stored as matrices [C_out, C_in], as in timm's Tiny and larger; timm's Atto to Nano
    store the same numbers as 1x1 convolutions.

    Args:
        depths: Blocks of each stage.
        dims: Width of each stage.
        in_chans: Channels of the images.
        stem_stride: Pixels per site of the first stage.
        kernel_size: Side of the depthwise kernels, odd.
        mlp_ratio: Width of the hidden features of a block as a multiple of its own.
        drop_path: Stochastic depth of the last block, rising linearly from 0.
        grn_scope: Sites of GRN's statistics, "image" or "batch".
        backend: Engine of the sparse operations.
    Attributes:
        strides: Pixels per site of each stage.
    Paper: Woo et al. 2023, ConvNeXt V2.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        *,
        in_chans: int = 3,
        stem_stride: int = 4,
        kernel_size: int = 7,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        grn_scope: Scope = "image",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not depths:
            raise InputError(f"depths and dims: expected one entry a stage, got {depths} and {dims}.")
        if kernel_size % 2 == 0 or kernel_size < 1 or stem_stride < 1:
            raise InputError(
                "kernel_size and stem_stride: expected an odd kernel and a stride of at least 1, got "
                f"{kernel_size} and {stem_stride}."
            )
        self.depths, self.dims, self.in_chans = tuple(depths), tuple(dims), in_chans
        self.strides = tuple(stem_stride * 2**stage for stage in range(len(depths)))
        self.stem = Stem(in_chans, dims[0], stem_stride)
        rates = [drop_path * block / max(1, sum(depths) - 1) for block in range(sum(depths))]
        stages = []
        for stage, (depth, channels) in enumerate(zip(depths, dims, strict=True)):
            downsample = Downsample(dims[stage - 1], channels, backend=backend) if stage else nn.Identity()
            blocks = [
                ConvNeXtV2Block(
                    channels,
                    kernel_size=kernel_size,
                    mlp_ratio=mlp_ratio,
                    drop_path=rates[sum(depths[:stage]) + block],
                    grn_scope=grn_scope,
                    backend=backend,
                )
                for block in range(depth)
            ]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.apply(init_weights)

    @property
    def max_stride(self) -> int:
        """Pixels per site of the last stage; the patch size is a multiple of it."""
        return self.strides[-1]

    def forward(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        *,
        sites: ActiveSites | None = None,
        execution: Execution = "sparse",
    ) -> list[Image]:
        """Features of every stage.

        Args:
            images: [B, in_chans, H, W], H and W divisible by `max_stride`.
            visible: Visible patches, bool [B, Gh, Gw]; None: all of them, as dense maps. Reading it waits
                for the device once.
            sites: The first stage's active sites, instead of `visible`; nothing waits.
            execution: "sparse", "masked_dense" or "leaky_dense".
        Returns:
            One entry a stage: a SparseImage (sparse), a MaskedImage (masked_dense) or a tensor [B, h, w, C].
        Raises:
            InputError: sides, channels or the patch grid do not fit.
        """
        require_name("execution", "a way to run the encoder", execution, EXECUTIONS)
        if images.ndim != 4:
            raise InputError(f"images: expected [B, {self.in_chans}, H, W], got {list(images.shape)}.")
        size = (images.shape[2], images.shape[3])
        patch_grid(size, self.max_stride)
        if images.shape[1] != self.in_chans:
            raise InputError(
                f"images: expected {self.in_chans} channels, got {images.shape[1]}. "
                f"Set in_chans={images.shape[1]}."
            )
        if visible is not None:
            if sites is not None or visible.ndim != 3 or visible.shape[0] != images.shape[0]:
                raise InputError(
                    f"visible: expected bool [{images.shape[0]}, Gh, Gw] and no sites, got "
                    f"{list(visible.shape)}{'' if sites is None else ' and sites'}."
                )
            sites = ActiveSites.from_patches(visible, tile=self.tile_of(size, visible.shape[1:]))
        x = self.stem(images, sites, execution)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def tile_of(self, image_size: tuple[int, int], grid: tuple[int, ...]) -> int:
        """Sites of the first stage along the side of one patch, for a patch grid (Gh, Gw).

        Raises:
            InputError: the grid does not cut the image into squares whose side `max_stride` divides.
        """
        patch = image_size[0] // max(1, grid[0])
        fits = (
            patch > 0
            and tuple(grid) == (image_size[0] / patch, image_size[1] / patch)
            and patch % self.max_stride == 0
        )
        if not fits:
            raise InputError(
                f"visible: expected square patches, a multiple of {self.max_stride} pixels wide, got "
                f"{grid[0]} x {grid[1]} for {image_size[0]} x {image_size[1]} pixels."
            )
        return patch // self.strides[0]


def init_weights(module: nn.Module) -> None:
    """Truncated normal of std 0.02 for kernels, zero for biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
