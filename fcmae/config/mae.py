"""What MAE adds to an encoder and a mask."""

from dataclasses import dataclass
from typing import Literal

from fcmae.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class MAEConfig(ModelConfig):
    """MAE: a ViT sees some patches, a smaller transformer paints the others."""

    method: Literal["mae"] = "mae"
    backbone: str = "vit_base_patch16"
    num_heads: int | None = None
    """Attention heads of the encoder; None: the preset's."""
    stem_stride: int | None = None
    """Pixels per token; None: as in the backbone's name. 4 or 8 suit small images."""
    patch_size: int | None = None
    """Side of a masking cell in pixels, a multiple of the token's; None: a token (the paper)."""
    mask_ratio: float = 0.75
    """Share of the cells that is hidden; `int(cells * (1 - mask_ratio))` stay visible (the paper: 0.75)."""
    mask_sampling: Literal["random", "block", "grid"] = "random"
    """`random`; `block`, as in BEiT (the paper: at 0.5 and 0.75); `grid`: one of four stays visible."""
    decoder_dim: int = 512
    """Width of the decoder (the paper: 512)."""
    decoder_depth: int = 8
    """Transformer blocks in the decoder (the paper: 8)."""
    decoder_heads: int = 16
    """Attention heads of the decoder (the paper: 16)."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and variance (the paper's best: on)."""
