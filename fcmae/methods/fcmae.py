"""FCMAE: a ConvNeXt V2 sees some patches, a small decoder paints the others."""

from torch import Tensor, nn

from fcmae.config import DECODERS, EXECUTIONS, Decoder, Execution
from fcmae.errors import InputError
from fcmae.masking import patch_grid
from fcmae.methods.masked_autoencoder import MaskedAutoencoder
from fcmae.models import ConvNeXtDecoder, ConvNeXtV2Encoder, TransformerDecoder, UNetDecoder, require_name
from fcmae.models.blocks import ConvNeXtV2Block
from sparse_ops import ActiveSites, Image, SparseImage, features_of

INITS = ("002", "original")
HEAD_CHANNELS = 32
"""Channels of a transformer decoder's attention heads: MAE's 512 in 16 heads."""


class FCMAE(MaskedAutoencoder):
    """Fully convolutional masked autoencoder.

    Args:
        encoder: ConvNeXt V2.
        image_size: (H, W) in pixels; other sizes that `patch_size` divides can be given at call time.
        patch_size: Side of a masking cell in pixels, a multiple of the encoder's largest stride (the paper:
            32).
        mask_ratio: Share of the cells that is hidden (the paper: 0.6).
        decoder: "convnext" (the paper), "transformer" or "unet".
        decoder_dim: Width of the decoder (the paper: 512); a unet halves it at each finer stage.
        decoder_depth: Blocks in the decoder, in a unet at each stage (the paper: 1).
        norm_pix_loss: Normalise each target patch by its own mean and variance (the paper: on).
        execution: How the encoder runs: "sparse", "masked_dense" (the same numbers) or "leaky_dense".
        init: "002", normal weights of standard deviation 0.02; or "original", the authors' accidental 1.0.
    Raises:
        InputError: sides or patch size do not fit, or the mask would hide nothing or everything.
    Paper: Woo et al. 2023, ConvNeXt V2, section 3.1.
    """

    encoder: ConvNeXtV2Encoder
    encoder_type = ConvNeXtV2Encoder

    def __init__(
        self,
        encoder: ConvNeXtV2Encoder,
        *,
        image_size: tuple[int, int],
        patch_size: int = 32,
        mask_ratio: float = 0.6,
        decoder: Decoder = "convnext",
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        norm_pix_loss: bool = True,
        execution: Execution = "sparse",
        init: str = "002",
    ) -> None:
        require_name("execution", "a way to run the encoder", execution, EXECUTIONS)
        require_name("init", "an initialisation", init, INITS)
        require_name("decoder", "a kind of decoder", decoder, DECODERS)
        super().__init__(
            encoder,
            image_size=image_size,
            patch_size=patch_size,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
        )
        self.execution = execution
        self.decoder = _create_decoder(decoder, encoder, image_size, dim=decoder_dim, depth=decoder_depth)
        if init == "original":
            if not isinstance(self.decoder, ConvNeXtDecoder):
                raise InputError(
                    f"init: expected 002 for a {decoder} decoder, got original. "
                    "Only the convnext decoder is the authors'."
                )
            _init_as_original(encoder, self.decoder)

    def predict(self, images: Tensor, sites: ActiveSites) -> Tensor:
        """Predicted patches [B, L, patch_size**2 * in_chans] from the first stage's active sites."""
        features = self.encoder(images, sites=sites, execution=self.execution)
        stages = [sites]
        for _ in features[1:]:
            stages.append(stages[-1].downsample(2))
        if isinstance(self.decoder, UNetDecoder):
            visible = [_visible(x, sites) for x, sites in zip(features, stages, strict=True)]
            return self.patches_of(self.decoder(visible))
        return self.patches_of(self.decoder(_visible(features[-1], stages[-1])))


def _visible(features: Image, sites: ActiveSites) -> SparseImage:
    if isinstance(features, SparseImage):
        return features
    return SparseImage.from_dense(features_of(features), sites)


def _create_decoder(
    kind: Decoder, encoder: ConvNeXtV2Encoder, image_size: tuple[int, int], *, dim: int, depth: int
) -> ConvNeXtDecoder | TransformerDecoder | UNetDecoder:
    site_pixels = encoder.max_stride**2 * encoder.in_chans
    if kind == "unet":
        return UNetDecoder(encoder.dims, encoder.strides, in_chans=encoder.in_chans, dim=dim, depth=depth)
    if kind == "transformer":
        return TransformerDecoder(
            encoder.dims[-1],
            site_pixels,
            grid=patch_grid(image_size, encoder.max_stride),
            dim=dim,
            depth=depth,
            num_heads=max(1, dim // HEAD_CHANNELS),
            class_token=False,
        )
    return ConvNeXtDecoder(encoder.dims[-1], site_pixels, dim=dim, depth=depth)


def _init_as_original(encoder: ConvNeXtV2Encoder, decoder: ConvNeXtDecoder) -> None:
    """Initialise as the authors' code does, by accident: standard deviation 1 in most kernels.

    Their second initialisation pass calls the truncated normal without a standard deviation for depthwise
    kernels, the encoder's linear layers and every dense convolution (the stem, and in the decoder the
    projection, the depthwise kernels and the prediction); the 2x2 downsamplings keep 0.02 and the decoder's
    linear layers PyTorch's default. Activations of the Base model start near 13 000 instead of 6.
    """
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
