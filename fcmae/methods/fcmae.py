"""FCMAE: a ConvNeXt V2 sees some patches, a small decoder paints the others."""

import torch
from torch import Tensor, nn

from fcmae.config import EXECUTIONS, Execution
from fcmae.errors import InputError
from fcmae.masking import (
    count_visible,
    patch_grid,
    patchify,
    random_visible_ids,
    unpatchify,
    visible_from_ids,
)
from fcmae.methods.losses import reconstruction_loss
from fcmae.methods.output import MethodOutput
from fcmae.models import ConvNeXtDecoder, ConvNeXtV2Encoder, require_name
from fcmae.models.blocks import ConvNeXtV2Block
from sparse_ops import ActiveSites, SparseImage, features_of


class FCMAE(nn.Module):
    """Fully convolutional masked autoencoder.

    Args:
        encoder: ConvNeXt V2.
        image_size: (H, W) in pixels; other sizes that `patch_size` divides can be given at call time.
        patch_size: Side of a masking cell in pixels, a multiple of the encoder's largest stride (the paper:
            32).
        mask_ratio: Share of the cells that is hidden (the paper: 0.6).
        decoder_dim: Width of the decoder (the paper: 512).
        decoder_depth: ConvNeXt V2 blocks in the decoder (the paper: 1).
        norm_pix_loss: Normalise each target patch by its own mean and variance (the paper: on).
        execution: How the encoder runs: "sparse", "masked_dense" (the same numbers) or "leaky_dense".
    Raises:
        InputError: sides or patch size do not fit, or the mask would hide nothing or everything.
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.1.
    """

    def __init__(
        self,
        encoder: ConvNeXtV2Encoder,
        *,
        image_size: tuple[int, int],
        patch_size: int = 32,
        mask_ratio: float = 0.6,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        norm_pix_loss: bool = True,
        execution: Execution = "sparse",
    ) -> None:
        super().__init__()
        require_name("execution", "a way to run the encoder", execution, EXECUTIONS)
        if patch_size < 1 or patch_size % encoder.max_stride:
            raise InputError(
                f"patch_size: expected a multiple of the encoder's largest stride {encoder.max_stride}, got "
                f"{patch_size}. For smaller patches take a smaller stem_stride."
            )
        count_visible(_area(patch_grid(image_size, patch_size)), mask_ratio)
        self.image_size, self.in_chans = image_size, encoder.in_chans
        self.patch_size, self.mask_ratio = patch_size, mask_ratio
        self.norm_pix_loss, self.execution = norm_pix_loss, execution
        self.encoder = encoder
        site_pixels = encoder.max_stride**2 * encoder.in_chans
        self.decoder = ConvNeXtDecoder(encoder.dims[-1], site_pixels, dim=decoder_dim, depth=decoder_depth)

    def forward(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        visible_ids: Tensor | None = None,
    ) -> MethodOutput:
        """Mask, encode, decode and compare.

        Args:
            images: [B, in_chans, H, W], H and W divisible by `patch_size`.
            visible: bool [B, Gh, Gw] to force a mask, True = kept; images may keep different numbers. Reading
                it waits for the device once.
            generator: Source of the mask's randomness, where none is given.
            visible_ids: A mask as int64 [B, K], see `draw_visible_ids`; nothing waits, and with it the step
                compiles as one graph.
        """
        grid = self.grid_of(images)
        tile = self.patch_size // self.encoder.strides[0]
        if visible is not None:
            if visible_ids is not None or tuple(visible.shape) != (images.shape[0], *grid):
                raise InputError(
                    f"visible: expected bool {[images.shape[0], *grid]} and no visible_ids, got "
                    f"{list(visible.shape)}{'' if visible_ids is None else ' and visible_ids'}."
                )
            if visible.all():
                raise InputError("visible: expected some masked patches, got none; there would be no loss.")
            sites = ActiveSites.from_patches(visible, tile=tile)
        else:
            if visible_ids is None:
                visible_ids = self.draw_visible_ids(images, generator)
            visible = visible_from_ids(visible_ids, grid)
            sites = ActiveSites.from_visible_ids(visible_ids, grid=grid, tile=tile)
        pred = self.predict(images, sites)
        loss = reconstruction_loss(
            pred, patchify(images, self.patch_size), ~visible.flatten(1), norm_pix_loss=self.norm_pix_loss
        )
        return MethodOutput(loss=loss, pred=pred, visible=visible)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches of each image, (Gh, Gw).

        Raises:
            InputError: a side is not divisible by `patch_size`.
        """
        return patch_grid((images.shape[2], images.shape[3]), self.patch_size)

    def draw_visible_ids(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random mask for the images: as many visible patches in each, int64 [B, K], ascending."""
        return random_visible_ids(
            images.shape[0],
            self.grid_of(images),
            mask_ratio=self.mask_ratio,
            generator=generator,
            device=images.device,
        )

    def predict(self, images: Tensor, sites: ActiveSites) -> Tensor:
        """Predicted patches [B, L, patch_size**2 * in_chans] from the first stage's active sites."""
        features = self.encoder(images, sites=sites, execution=self.execution)[-1]
        if not isinstance(features, SparseImage):
            for _ in self.encoder.stages[1:]:
                sites = sites.downsample(2)
            features = SparseImage.from_dense(features_of(features), sites)
        pixels = self.decoder(features)
        if self.patch_size == self.encoder.max_stride:
            return pixels.flatten(1, 2)
        stride = self.encoder.max_stride
        image = unpatchify(pixels.flatten(1, 2), stride, grid=(pixels.shape[1], pixels.shape[2]))
        return patchify(image, self.patch_size)


def init_as_original(method: FCMAE) -> None:
    """Initialise as the authors' code does, by accident: standard deviation 1 in most kernels.

    Their second initialisation pass calls the truncated normal without a standard deviation for depthwise
    kernels, the encoder's linear layers and every dense convolution (the stem, and in the decoder the
    projection, the depthwise kernels and the prediction); the 2x2 downsamplings keep 0.02 and the decoder's
    linear layers PyTorch's default. Activations of the Base model start near 13 000 instead of 6.
    """
    encoder, decoder = method.encoder, method.decoder
    wide: list[nn.Conv2d | nn.Linear] = [encoder.stem.conv, decoder.proj, decoder.pred]
    for block in encoder.modules():
        if isinstance(block, ConvNeXtV2Block):
            wide += [block.conv_dw, block.mlp.fc1, block.mlp.fc2]
    for block in decoder.modules():
        if isinstance(block, ConvNeXtV2Block):
            wide.append(block.conv_dw)
            block.mlp.fc1.reset_parameters()
            block.mlp.fc2.reset_parameters()
    for module in wide:
        nn.init.trunc_normal_(module.weight, std=1.0)


def _area(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
