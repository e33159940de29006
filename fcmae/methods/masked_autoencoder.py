"""What the methods that paint masked patches share: the mask, the loss, and the checks of both."""

import torch
from torch import Tensor

from fcmae.errors import InputError
from fcmae.masking import (
    WHOLE,
    BatchPart,
    count_visible,
    patch_grid,
    patchify,
    random_visible_ids,
    unpatchify,
    visible_from_ids,
)
from fcmae.methods.losses import reconstruction_loss
from fcmae.methods.method import Method
from fcmae.methods.output import Reconstruction
from fcmae.models import Encoder
from sparse_ops import ActiveSites


class MaskedAutoencoder(Method):
    """Base of the methods whose encoder sees some patches and whose decoder paints the others.

    A method has a decoder of its own and says in `predict` how it is used.

    Args:
        encoder: Of `encoder_type`.
        image_size: (H, W) in pixels; other sizes that `patch_size` divides can be given at call time.
        patch_size: Side of a masking cell in pixels, a multiple of the encoder's largest stride.
        mask_ratio: Share of the cells that is hidden.
        norm_pix_loss: Normalise each target patch by its own mean and variance.
    Attributes:
        cell_size: Side of a masking cell in pixels: the patch, unless a method hides finer ones.
    Raises:
        InputError: sides or patch size do not fit, or the mask would hide nothing or everything.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        mask_ratio: float,
        norm_pix_loss: bool,
    ) -> None:
        super().__init__(encoder)
        if patch_size < 1 or patch_size % encoder.max_stride:
            raise InputError(
                f"patch_size: expected a multiple of the encoder's largest stride {encoder.max_stride}, got "
                f"{patch_size}. For smaller patches take an encoder of smaller strides."
            )
        grid = patch_grid(image_size, patch_size)
        count_visible(grid[0] * grid[1], mask_ratio)
        self.image_size, self.patch_size, self.cell_size = image_size, patch_size, patch_size
        self.mask_ratio, self.norm_pix_loss = mask_ratio, norm_pix_loss

    def forward(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        visible_ids: Tensor | None = None,
    ) -> Reconstruction:
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
        tile = self.cell_size // self.encoder.strides[0]
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
            pred,
            patchify(images, self.patch_size),
            self.hidden_targets(visible),
            norm_pix_loss=self.norm_pix_loss,
        )
        return Reconstruction(loss=loss, pred=pred, visible=visible)

    def predict(self, images: Tensor, sites: ActiveSites) -> Tensor:
        """Predicted patches [B, L, patch_size**2 * in_chans] from the first stage's active sites."""
        raise NotImplementedError

    def patches_of(self, pixels: Tensor) -> Tensor:
        """Predictions at the sites of the last stage, [B, h, w, max_stride**2 * in_chans], as patches
        [B, L, patch_size**2 * in_chans].
        """
        stride = self.encoder.max_stride
        if self.patch_size == stride:
            return pixels.flatten(1, 2)
        image = unpatchify(pixels.flatten(1, 2), stride, grid=(pixels.shape[1], pixels.shape[2]))
        return patchify(image, self.patch_size)

    def hidden_targets(self, visible: Tensor) -> Tensor:
        """What the loss counts: the hidden patches, bool [B, L]."""
        return ~visible.flatten(1)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Masking cells of each image, (Gh, Gw).

        Raises:
            InputError: a side is not divisible by `patch_size`.
        """
        height, width = patch_grid((images.shape[2], images.shape[3]), self.patch_size)
        split = self.patch_size // self.cell_size
        return height * split, width * split

    def draw_visible_ids(
        self, images: Tensor, generator: torch.Generator | None = None, *, part: BatchPart = WHOLE
    ) -> Tensor:
        """A random mask for the images: as many visible patches in each, int64 [B, K], ascending."""
        return random_visible_ids(
            images.shape[0],
            self.grid_of(images),
            mask_ratio=self.mask_ratio,
            part=part,
            generator=generator,
            device=images.device,
        )
