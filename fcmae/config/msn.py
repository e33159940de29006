"""What MSN adds to an encoder and a mask."""

from dataclasses import dataclass
from typing import Literal

from fcmae.config.checks import check_range, require
from fcmae.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class MSNConfig(ModelConfig):
    """MSN: masked anchor views choose the prototypes that the whole target view chooses.

    The defaults are those of the released ViT-S/16 recipe; the paper's best S/16 differs in
    `sinkhorn_iterations` (0) and `me_max_weight` (5).
    """

    method: Literal["msn"] = "msn"
    backbone: str = "convnextv2_tiny"
    patch_size: int | None = None
    """Side of a masking cell in pixels, a multiple of the encoder's largest stride; None: that stride."""
    mask_ratio: float = 0.15
    """Share of an anchor's cells that is hidden (the paper: 0.15 S/16, 0.3 B/16, 0.7 L/7)."""
    mask_sharing: Literal["sample", "original"] = "sample"
    """`sample`: each anchor has its own mask. `original`: one for all anchors of the batch."""
    anchors: int = 1
    """Masked views, crops by `data.crop_scale` as the target is (the paper: 1, of 0.3 to 1)."""
    focal_views: int = 10
    """Small unmasked views (the paper: 10)."""
    focal_size: int = 96
    """Their side in pixels, divisible by the encoder's largest stride (the paper: 96)."""
    focal_scale: tuple[float, float] = (0.05, 0.3)
    """Area of their crops as a share of the image (the paper: 0.05 to 0.3)."""
    color_jitter: float = 0.5
    """Strength of the change of colours; 0: none, as other than 3 channels need (the paper: 0.5)."""
    blur: float = 0.5
    """Probability of a Gaussian blur (the paper: 0.5)."""
    share_view: bool = False
    """An ablation that collapses: the anchors are masked copies of the target's view (the paper: off)."""
    prototypes: int = 1024
    """How many assignments there are (the paper: 1024)."""
    hidden_dim: int = 2048
    """Width of the projection head (the paper: 2048)."""
    output_dim: int = 256
    """Width of the prototypes (the paper: 256)."""
    temperature: float = 0.1
    """Of the softmax over prototypes (the paper: 0.1)."""
    sharpening: float = 0.25
    """T: the targets' probabilities are raised to 1 / T (the paper: 0.25)."""
    sinkhorn_iterations: int = 3
    """Of Sinkhorn's normalisation of the targets; 0: none (released recipe: 3; the paper's best S/16: 0)."""
    me_max_weight: float = 1.0
    """Weight of the mean prediction's entropy, to be large (released recipe: 1; the paper's best S/16: 5)."""
    entropy_weight: float = 0.0
    """Weight of each prediction's entropy, to be small (the paper: 0)."""
    momentum: float = 0.996
    """Of the target network's average at the first step; rises linearly to 1 (the paper: 0.996)."""
    stem_stride: int | None = None
    """Pixels per site of the first stage, of a ViT per token; None: the preset's."""
    num_heads: int | None = None
    """Attention heads of a ViT; None: the preset's."""
    positions: Literal["fixed", "learnt"] | None = None
    """Position embeddings of a ViT; None: `fixed` (the paper: learnt)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (
            ("anchors", 1),
            ("focal_views", 0),
            ("focal_size", 1),
            ("prototypes", 2),
            ("hidden_dim", 1),
            ("output_dim", 1),
            ("sinkhorn_iterations", 0),
            ("color_jitter", 0),
            ("me_max_weight", 0),
            ("entropy_weight", 0),
        ):
            value = getattr(self, name)
            require(value >= low, f"model.{name}: expected at least {low}, got {value:g}.")
        require(self.temperature > 0, f"model.temperature: expected more than 0, got {self.temperature:g}.")
        check_range("model.sharpening", self.sharpening, 0.0, 1.0, open_low=True)
        check_range("model.momentum", self.momentum, 0.0, 1.0)
        check_range("model.blur", self.blur, 0.0, 1.0)
        low, high = self.focal_scale
        require(
            0 < low <= high <= 1, f"model.focal_scale: expected 0 < low <= high <= 1, got {self.focal_scale}."
        )
