"""What ConvMAE adds to an encoder and a mask."""

from dataclasses import dataclass
from typing import Literal

from fcmae.config.model import Execution, ModelConfig


@dataclass(frozen=True, kw_only=True)
class ConvMAEConfig(ModelConfig):
    """ConvMAE: two convolution stages and a transformer see some patches, a transformer paints the others."""

    method: Literal["convmae"] = "convmae"
    backbone: str = "convmae_base"
    num_heads: int | None = None
    """Attention heads of the encoder's last stage; None: the preset's."""
    kernel_size: int | None = None
    """Side of the encoder's depthwise kernels, odd; None: 5 (the paper compares 3, 5, 7 and 9)."""
    patch_size: int = 16
    """Side of a patch in pixels, a multiple of 16 (the paper: 16)."""
    mask_ratio: float = 0.75
    """Share of the cells that is hidden; `int(cells * (1 - mask_ratio))` are visible (the paper: 0.75)."""
    mask_stride: int | None = None
    """Side of a masking cell in pixels; None: the patch, block-wise. 4: random in stage 1 (ablation)."""
    complementary_masks: bool = False
    """Each image under 1 / (1 - mask_ratio) masks that together show every cell once (FastConvMAE: four)."""
    multi_scale: bool = True
    """Add the features of the convolution stages before the decoder (the paper: on)."""
    decoder_dim: int = 512
    """Width of the decoder (the paper: 512)."""
    decoder_depth: int = 8
    """Transformer blocks in the decoder (the paper: 8)."""
    decoder_heads: int = 16
    """Attention heads of the decoder (the paper: 16)."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and variance (the paper: on)."""
    execution: Execution = "sparse"
    """`sparse`: visible tiles. `masked_dense`: the same, all sites. `leaky_dense`: no masked convolution."""
