"""The optimiser and the length of a run."""

from dataclasses import dataclass
from typing import Literal

from fcmae.config.checks import check_range, require

Schedule = Literal["cosine", "linear", "steps"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimiser and the length of pretraining; defaults are the paper's (table 8), 800 epochs."""

    steps: int = 250_000
    """Optimiser steps of the whole run."""
    batch_size: int = 64
    """Images per device and forward pass."""
    accumulate: int = 1
    """Forward passes per optimiser step."""
    base_lr: float = 1.5e-4
    """Learning rate per 256 images (the paper: 1.5e-4)."""
    start_lr: float = 0.0
    """Learning rate that the warm-up rises from."""
    min_lr: float = 0.0
    """Learning rate at the last step."""
    schedule: Schedule = "cosine"
    """How the learning rate falls behind the warm-up: half a cosine, a line (`poly` of power 1), or to a
    tenth at each of `milestones`."""
    milestones: tuple[float, ...] = (0.75, 11 / 12)
    """Of `steps`: shares of the run, warm-up included (Mask R-CNN's 36 epochs: after 27 and 33)."""
    warmup_steps: int = 12_500
    """Steps of linear warm-up (the paper: 40 epochs of 800); a shorter run stays in its warm-up."""
    schedule_stretch: float = 1.0
    """Length of the schedules as a multiple of `steps`: over 1, none reaches its end (original MSN: 1.25)."""
    weight_decay: float = 0.05
    final_weight_decay: float | None = None
    """Weight decay at the last step, approached by half a cosine; None: constant."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = None
    """Largest norm of the gradient of all parameters together; None: not clipped."""
    max_skipped_steps: int = 10
    """Steps of the run whose gradient is not finite that are skipped, counted and logged before it stops."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast; weights and optimiser state stay in float32."""
    compile: bool = False
    """Run the network through torch.compile."""
    checkpoint_activations: bool = False
    """Keep each block's input only and run the block again in the backward pass: less memory, more time."""
    seed: int = 0
    """Every random draw of a run is a function of (seed, step)."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}: expected at least 1, got {value}.")
        require(self.warmup_steps >= 0, f"train.warmup_steps: expected 0 or more, got {self.warmup_steps}.")
        require(
            self.max_skipped_steps >= 0,
            f"train.max_skipped_steps: expected 0 or more, got {self.max_skipped_steps}.",
        )
        require(self.base_lr > 0, f"train.base_lr: expected a positive rate, got {self.base_lr:g}.")
        require(
            all(0 < share < 1 for share in self.milestones),
            f"train.milestones: expected shares between 0 and 1, got {self.milestones}.",
        )
        require(
            self.schedule_stretch >= 1,
            f"train.schedule_stretch: expected at least 1, got {self.schedule_stretch:g}.",
        )
        require(
            self.final_weight_decay is None or min(self.weight_decay, self.final_weight_decay) > 0,
            f"train.final_weight_decay: expected positive values at both ends, got {self.weight_decay:g} to "
            f"{self.final_weight_decay}.",
        )


@dataclass(frozen=True, kw_only=True)
class PretrainTrainConfig(TrainConfig):
    """The optimiser of pretraining, and how often one looks at it."""

    reconstruct_every: int = 0
    """Steps between pictures of what is painted into eight fixed images; 0: none. FCMAE, ConvMAE, MAE."""
    diversity_every: int = 0
    """Steps between looks at how different the channels of four layers are (feature cosine distance), on
    eight fixed images; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reconstruct_every", "diversity_every"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name}: expected 0 or more, got {value}.")


@dataclass(frozen=True, kw_only=True)
class FinetuneTrainConfig(TrainConfig):
    """The optimiser and the regularisation of fine-tuning; defaults are ConvNeXt V2-Tiny's on ImageNet-1K."""

    steps: int = 375_000
    base_lr: float = 8e-4
    min_lr: float = 1e-6
    warmup_steps: int = 50_000
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.9
    """Factor on the learning rate per layer below the head; 1 turns it off."""
    layer_decay_type: Literal["single", "group"] = "single"
    """`single`: a layer per block (Atto to Tiny, ViTs). `group`: twelve groups (Base to Huge); of ConvMAE,
    both convolution stages below the first layer, as in the original."""
    label_smoothing: float = 0.1
    mixup: float = 0.0
    """Alpha of mixup; 0 turns it off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 turns it off."""
    rand_augment: str | None = None
    """timm's description of RandAugment, such as `rand-m9-mstd0.5-inc1`; None turns it off."""
    random_erasing: float = 0.0
    """Probability of erasing a rectangle."""
    ema_decay: float | None = None
    """Decay of the weights' moving average, evaluated too (the paper: 0.9999); None turns it off."""
    evaluate_every: int = 1000
    """Steps between evaluations; the last step is always evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("train.layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)
        check_range("train.label_smoothing", self.label_smoothing, 0.0, 1.0)
        check_range("train.random_erasing", self.random_erasing, 0.0, 1.0)
        require(
            self.evaluate_every >= 1, f"train.evaluate_every: expected at least 1, got {self.evaluate_every}."
        )
