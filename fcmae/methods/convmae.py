"""ConvMAE: two convolution stages and a transformer see some patches, a transformer paints the others."""

import torch
from torch import Tensor

from fcmae.config import EXECUTIONS, Execution
from fcmae.errors import InputError
from fcmae.masking import WHOLE, BatchPart, complementary_visible_ids, count_visible, patchify
from fcmae.methods.masked_autoencoder import MaskedAutoencoder
from fcmae.methods.output import Reconstruction
from fcmae.models import ConvMAEEncoder, TransformerDecoder, require_name
from sparse_ops import ActiveSites, DownsampleConv2d, Image, SparseImage, features_of


class ConvMAE(MaskedAutoencoder):
    """Masked autoencoder of a hybrid network, with block-wise masks and multi-scale features.

    The mask is drawn in patches of the last stage, so that every stage keeps whole tiles. The first two
    stages' features, brought to the last one's sites, are added to its tokens before the norm.

    Args:
        encoder: ConvMAE's.
        image_size: (H, W) in pixels; other sizes that `patch_size` divides can be given at call time.
        patch_size: Side of a patch in pixels, a multiple of 16 (the paper: 16).
        mask_ratio: Share of the masking cells that is hidden (the paper: 0.75).
        mask_stride: Side of a masking cell in pixels; None: the patch, which is the block-wise mask. 4 or 8
            for the paper's ablation: then nearly every token has a visible part, and the loss counts the
            hidden pixels. Reading such a mask waits for the device.
        complementary_masks: Run every image under 1 / (1 - mask_ratio) masks that together show each cell
            once, as FastConvMAE does (four).
        multi_scale: Add the first two stages' features (the paper: on).
        decoder_dim: Width of the decoder (the paper: 512).
        decoder_depth: Transformer blocks in the decoder (the paper: 8).
        decoder_heads: Attention heads of the decoder (the paper: 16).
        norm_pix_loss: Normalise each target patch by its own mean and variance (the paper: on).
        execution: How the convolution stages run: "sparse", "masked_dense" (the same numbers) or
            "leaky_dense" (without masked convolution).
    Raises:
        InputError: sides, patch size, masks or widths do not fit.
    Paper: Gao et al. 2022, ConvMAE, section 3; FastConvMAE for the complementary masks.
    """

    encoder: ConvMAEEncoder
    encoder_type = ConvMAEEncoder

    def __init__(
        self,
        encoder: ConvMAEEncoder,
        *,
        image_size: tuple[int, int],
        patch_size: int = 16,
        mask_ratio: float = 0.75,
        mask_stride: int | None = None,
        complementary_masks: bool = False,
        multi_scale: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = True,
        execution: Execution = "sparse",
    ) -> None:
        require_name("execution", "a way to run the encoder", execution, EXECUTIONS)
        super().__init__(
            encoder,
            image_size=image_size,
            patch_size=patch_size,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
        )
        finest, stride = encoder.strides[0], encoder.max_stride
        if mask_stride is not None and (
            mask_stride < finest or mask_stride % finest or patch_size % mask_stride
        ):
            raise InputError(
                f"mask_stride: expected a multiple of {finest} that divides the patch size {patch_size}, got "
                f"{mask_stride}. The paper compares 4 and 16."
            )
        self.cell_size = patch_size if mask_stride is None else mask_stride
        self.complementary_masks, self.execution = complementary_masks, execution
        if complementary_masks:
            cells = (image_size[0] // self.cell_size) * (image_size[1] // self.cell_size)
            _count_masks(cells, mask_ratio)
        first, second, last = encoder.dims
        self.multi_scale = multi_scale
        if multi_scale:
            self.stage1_output_decode = DownsampleConv2d(
                first, last, encoder.strides[2] // encoder.strides[0]
            )
            self.stage2_output_decode = DownsampleConv2d(
                second, last, encoder.strides[2] // encoder.strides[1]
            )
        self.decoder = TransformerDecoder(
            last,
            stride**2 * encoder.in_chans,
            grid=(image_size[0] // stride, image_size[1] // stride),
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            class_token=False,
        )

    def draw_visible_ids(
        self, images: Tensor, generator: torch.Generator | None = None, *, part: BatchPart = WHOLE
    ) -> Tensor:
        """Random masks: int64 [B, K], ascending; with complementary masks [B, masks, K]."""
        if not self.complementary_masks:
            return super().draw_visible_ids(images, generator, part=part)
        grid = self.grid_of(images)
        return complementary_visible_ids(
            images.shape[0],
            grid,
            masks=_count_masks(grid[0] * grid[1], self.mask_ratio),
            part=part,
            generator=generator,
            device=images.device,
        )

    def forward(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        visible_ids: Tensor | None = None,
    ) -> Reconstruction:
        """Mask, encode, decode and compare; see `MaskedAutoencoder.forward`.

        With complementary masks each image stands as often in the result as it has masks, one copy after the
        other; a forced `visible` mask is used alone.
        """
        if self.complementary_masks and visible is None:
            if visible_ids is None:
                visible_ids = self.draw_visible_ids(images, generator)
            images = images.repeat_interleave(visible_ids.shape[1], dim=0)
            visible_ids = visible_ids.flatten(0, 1)
        return super().forward(images, visible, generator, visible_ids=visible_ids)

    def predict(self, images: Tensor, sites: ActiveSites) -> Tensor:
        """Predicted patches [B, L, patch_size**2 * in_chans] from the first stage's active sites."""
        first, second, tokens = self.encoder(images, sites=sites, execution=self.execution)
        assert isinstance(tokens, SparseImage)
        features = tokens.features
        if self.multi_scale:
            features = features + _rows(self.stage1_output_decode(first), tokens.sites)
            features = features + _rows(self.stage2_output_decode(second), tokens.sites)
        return self.patches_of(self.decoder(tokens.with_features(self.encoder.norm(features))))

    def hidden_targets(self, visible: Tensor) -> Tensor:
        """What the loss counts: hidden patches, bool [B, L]; of smaller cells hidden pixels, [B, L, D]."""
        if self.cell_size == self.patch_size:
            return super().hidden_targets(visible)
        hidden = (~visible).repeat_interleave(self.cell_size, 1).repeat_interleave(self.cell_size, 2)
        return patchify(hidden[:, None].expand(-1, self.in_chans, -1, -1), self.patch_size)


def _rows(x: Image, sites: ActiveSites) -> Tensor:
    """The features at the sites, [N, C], whatever the representation."""
    return (
        x.features if isinstance(x, SparseImage) else SparseImage.from_dense(features_of(x), sites).features
    )


def _count_masks(cells: int, mask_ratio: float) -> int:
    """Masks of `count_visible` cells that show every cell once.

    Raises:
        InputError: the cells cannot be dealt out evenly.
    """
    kept = count_visible(cells, mask_ratio)
    if cells % kept or cells // kept != round(1 / (1 - mask_ratio)):
        raise InputError(
            f"complementary_masks: expected {cells} cells to fall into equal masks, got {kept} visible in "
            f"each at mask_ratio {mask_ratio:g}. Take a ratio of 1 - 1/n, and images whose cells n divides."
        )
    return cells // kept
