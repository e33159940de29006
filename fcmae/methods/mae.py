"""MAE: a ViT sees some patches, a smaller transformer paints the others."""

from functools import partial

import torch
from torch import Tensor

from fcmae.masking import MASK_SAMPLERS, WHOLE, BatchPart, patch_grid
from fcmae.methods.masked_autoencoder import MaskedAutoencoder
from fcmae.models import TransformerDecoder, ViTEncoder, require_name
from sparse_ops import ActiveSites, SparseImage


class MAE(MaskedAutoencoder):
    """Masked autoencoder with a vision transformer.

    Args:
        encoder: ViT. Its state dict is made to hold the positions of `image_size`.
        image_size: (H, W) in pixels; other sizes that `patch_size` divides can be given at call time.
        patch_size: Side of a masking cell in pixels, a multiple of the token's; None: a token (the paper).
        mask_ratio: Share of the cells that is hidden (the paper: 0.75).
        mask_sampling: "random", "block" or "grid".
        decoder_dim: Width of the decoder (the paper: 512).
        decoder_depth: Transformer blocks in the decoder (the paper: 8).
        decoder_heads: Attention heads of the decoder (the paper: 16).
        norm_pix_loss: Normalise each target patch by its own mean and variance (the paper's best: on).
    Raises:
        InputError: sides, patch size, widths or heads do not fit, or the mask would hide nothing or
            everything, or not the three quarters that "grid" hides.
    Paper: He et al. 2021, Masked Autoencoders Are Scalable Vision Learners, section 3.
    """

    encoder: ViTEncoder
    encoder_type = ViTEncoder

    def __init__(
        self,
        encoder: ViTEncoder,
        *,
        image_size: tuple[int, int],
        patch_size: int | None = None,
        mask_ratio: float = 0.75,
        mask_sampling: str = "random",
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = True,
    ) -> None:
        require_name("mask_sampling", "a way to sample masks", mask_sampling, MASK_SAMPLERS)
        super().__init__(
            encoder,
            image_size=image_size,
            patch_size=encoder.max_stride if patch_size is None else patch_size,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
        )
        self.sample_ids = partial(MASK_SAMPLERS[mask_sampling], mask_ratio=mask_ratio)
        self.sample_ids(0, patch_grid(image_size, self.patch_size))  # refuses a ratio that it cannot keep
        encoder.set_image_size(image_size)
        self.decoder = TransformerDecoder(
            encoder.dims[-1],
            encoder.max_stride**2 * encoder.in_chans,
            grid=encoder.grid,
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
        )

    def predict(self, images: Tensor, sites: ActiveSites) -> Tensor:
        """Predicted patches [B, L, patch_size**2 * in_chans] from the visible tokens' sites."""
        tokens = self.encoder.forward_tokens(images, sites=sites)
        features = SparseImage(tokens[:, 1:].flatten(0, 1), sites)
        return self.patches_of(self.decoder(features, tokens[:, 0]))

    def draw_visible_ids(
        self, images: Tensor, generator: torch.Generator | None = None, *, part: BatchPart = WHOLE
    ) -> Tensor:
        """A mask for the images: as many visible patches in each, int64 [B, K], ascending."""
        return self.sample_ids(
            images.shape[0], self.grid_of(images), part=part, generator=generator, device=images.device
        )
