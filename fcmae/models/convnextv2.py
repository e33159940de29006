"""ConvNeXt V2 whose one set of parameters runs on visible sites, on masked dense maps and on whole images."""

from typing import cast

from torch import Tensor, nn

from fcmae.config import EXECUTIONS, GATINGS, Execution, Gating
from fcmae.errors import InputError
from fcmae.masking import space_to_depth
from fcmae.models.blocks import ConvNeXtV2Block, Downsample
from fcmae.models.encoder import Encoder
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


class ConvNeXtV2Encoder(Encoder):
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
        gating: What the blocks have in GRN's place, one of GATINGS.
        grn_scope: Sites of GRN's statistics, "image" or "batch".
        backend: Engine of the sparse operations.
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
        gating: Gating = "grn",
        grn_scope: Scope = "image",
        backend: str = "auto",
    ) -> None:
        strides = tuple(stem_stride * 2**stage for stage in range(len(depths)))
        super().__init__(depths, dims, in_chans=in_chans, strides=strides)
        if kernel_size % 2 == 0 or kernel_size < 1 or stem_stride < 1:
            raise InputError(
                "kernel_size and stem_stride: expected an odd kernel and a stride of at least 1, got "
                f"{kernel_size} and {stem_stride}."
            )
        require_name("gating", "what blocks have in GRN's place", gating, GATINGS)
        if grn_scope != "image" and gating != "grn":
            raise InputError(
                f"grn_scope: expected image for gating {gating}, got {grn_scope}. "
                "Only grn can count the batch."
            )
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
                    gating=gating,
                    grn_scope=grn_scope,
                    backend=backend,
                )
                for block in range(depth)
            ]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.apply(init_weights)

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
        sites = self.first_sites(images, visible, sites)
        x = self.stem(images, sites, execution)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def init_weights(module: nn.Module) -> None:
    """Truncated normal of std 0.02 for kernels, zero for biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
