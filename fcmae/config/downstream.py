"""What detection and segmentation share: annotations, the pretrained pyramid and its optimiser."""

from dataclasses import dataclass
from typing import Literal

from fcmae.config.checks import check_range, require
from fcmae.config.data import PixelConfig
from fcmae.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """The encoder whose feature pyramid is trained further; see `fcmae.downstream.create_pyramid`."""

    backbone: str = "convnextv2_tiny"
    weights: str | None = None
    """A pretraining or fine-tuned checkpoint, its run folder, or converted weights; None: random weights."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, rising linearly."""
    num_heads: int | None = None
    """Attention heads of a ConvMAE or ViT; None: the preset's. Weights of own sizes do not tell theirs."""
    window_size: int | None = None
    """Tokens along the side of an attention window; 0: all attention is global. None: 16 for ConvMAE, 0 for
    ViT."""
    global_blocks: tuple[int, ...] | None = None
    """Blocks with global attention, counted from 0. None: the first, the last and two between them."""
    positions: Literal["interpolated", "relative", "both"] = "interpolated"
    """Position embeddings of a ConvMAE or ViT."""

    def __post_init__(self) -> None:
        check_range("model.drop_path", self.drop_path, 0.0, 1.0)
        require(
            self.window_size is None or self.window_size >= 0,
            f"model.window_size: expected 0 or more, got {self.window_size}.",
        )


@dataclass(frozen=True, kw_only=True)
class AnnotatedConfig(PixelConfig):
    """Images with annotations that may be broken."""

    broken: Literal["refuse", "skip"] = "refuse"
    """Annotations that are broken, and images that are missing. `refuse`: the first ends the command with a
    line about it. `skip`: they are left out, counted and told."""


@dataclass(frozen=True, kw_only=True)
class DownstreamTrainConfig(TrainConfig):
    """The optimiser of detection and segmentation."""

    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    """Factor on the encoder's learning rate per layer below the new parts; 1 turns it off."""
    layer_decay_type: Literal["single", "group"] = "single"
    """As in fine-tuning."""
    evaluate_every: int = 1000
    """Steps between evaluations; the last step is always evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("train.layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)
        require(
            self.evaluate_every >= 1, f"train.evaluate_every: expected at least 1, got {self.evaluate_every}."
        )
