"""Evaluation of encoders, frozen or fine-tuned: the images, and the settings of each protocol."""

from dataclasses import dataclass, field
from typing import Literal

from fcmae.config.checks import check_range, require, require_halves
from fcmae.config.data import DataConfig

FROZEN = ("knn", "probe", "lowshot")
"""Protocols that learn from the features of a frozen encoder."""
TUNED = ("partial", "finetune")
"""Protocols that train the encoder itself."""
PROTOCOLS = (*FROZEN, *TUNED)


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """k nearest neighbours by cosine, weighted by exp(cosine / temperature)."""

    neighbours: int = 20
    """How many vote (Wu et al. 2018, Caron et al. 2021: 20)."""
    temperature: float = 0.07
    """Small values favour the nearest (both papers: 0.07)."""

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, f"knn.neighbours: expected at least 1, got {self.neighbours}.")
        require(self.temperature > 0, f"knn.temperature: expected more than 0, got {self.temperature:g}.")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A linear classifier on all training images."""

    solver: Literal["lbfgs", "lars"] = "lbfgs"
    """`lbfgs`: scikit-learn's logistic regression on standardised features. `lars`: BatchNorm without
    parameters and a linear layer by SGD with LARS, as MAE and ConvMAE."""
    crops: bool = False
    """lars: random crops and flips drawn anew in each epoch, as both papers, and so the encoder runs in each;
    off: features of one centre crop, extracted once."""
    strength: float = 1.0
    """lbfgs: inverse of the L2 penalty's weight, scikit-learn's C."""
    epochs: int = 90
    """lars: passes over the training images (MAE: 90 for Base, 50 for Large and Huge)."""
    warmup_epochs: int = 10
    """lars: passes of linear warm-up (MAE: 10)."""
    batch_size: int = 16384
    """lars: images a step, at most all (MAE: 16384; ConvMAE: 4096)."""
    base_lr: float = 0.1
    """lars: learning rate per 256 images (both: 0.1)."""
    weight_decay: float = 0.0
    """lars: of the linear layer (both: 0)."""

    def __post_init__(self) -> None:
        require(
            not self.crops or self.solver == "lars",
            "probe.crops: expected false with probe.solver=lbfgs, which reads all features at once, got "
            "true. Add --probe.solver=lars.",
        )
        require(self.strength > 0, f"probe.strength: expected more than 0, got {self.strength:g}.")
        require(self.epochs >= 1, f"probe.epochs: expected at least 1, got {self.epochs}.")
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"probe.warmup_epochs: expected 0 to less than probe.epochs={self.epochs}, "
            f"got {self.warmup_epochs}.",
        )
        require(self.batch_size >= 2, f"probe.batch_size: expected at least 2, got {self.batch_size}.")
        require(self.base_lr > 0, f"probe.base_lr: expected more than 0, got {self.base_lr:g}.")
        require(self.weight_decay >= 0, f"probe.weight_decay: expected 0 or more, got {self.weight_decay:g}.")


@dataclass(frozen=True, kw_only=True)
class LowShotConfig:
    """Logistic regression on few labelled images, the mean over fixed splits."""

    per_class: tuple[int, ...] = (1, 2, 5)
    """Images of each class (MSN: 1, 2 and 5)."""
    percent: float | None = 1.0
    """Share of each class's images in %, at least one image (MSN: 1); None: left out."""
    penalty: float = 0.0025
    """Weight of the L2 penalty against the sum of losses (MSN: 0.0025); its inverse is scikit-learn's C."""
    percent_penalty: float = 0.075
    """The same for `percent` (an author in facebookresearch/msn issue 11: 0.075)."""
    splits: str | None = None
    """Folder of the lists of images; missing ones are written. None: in the cache, beside the features."""

    def __post_init__(self) -> None:
        require(
            all(count >= 1 for count in self.per_class),
            f"lowshot.per_class: expected at least 1 image of each class, got {self.per_class}.",
        )
        require(
            self.percent is None or 0 < self.percent < 100,
            f"lowshot.percent: expected a value in (0, 100), got {self.percent}.",
        )
        for name in ("penalty", "percent_penalty"):
            value = getattr(self, name)
            require(value > 0, f"lowshot.{name}: expected more than 0, got {value:g}.")


@dataclass(frozen=True, kw_only=True)
class PartialConfig:
    """Fine-tuning of the last blocks alone, one run for each number of blocks."""

    blocks: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Blocks that are trained, counted from the head; 0: the head alone; 0.5: the MLP of the last block (MAE,
    figure 9: 0, 0.5, 1, 2, 4, 6, 12, 18 and 24 of 24)."""

    def __post_init__(self) -> None:
        require(bool(self.blocks), "partial.blocks: expected at least one number of blocks, got none.")
        for blocks in self.blocks:
            require_halves("partial.blocks", blocks)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Fine-tuning on all training images, of the protocols finetune and partial."""

    recipe: str | None = None
    """YAML file of `fcmae finetune`, of which `model` and `train` are followed, on the images of this
    evaluation and one device; None: a small recipe of AdamW with the fields below."""
    epochs: int = 20
    """Passes over the training images, a tenth of them warm-up."""
    batch_size: int = 64
    """Images a step, at most all."""
    base_lr: float = 1e-3
    """Learning rate per 256 images (MAE: 5e-4 for Base, 1e-3 for Large and Huge; ConvNeXt V2-Tiny: 8e-4)."""
    layer_decay: float = 0.75
    """Factor on the learning rate per layer below the head (MAE: 0.65 to 0.75; ConvNeXt V2-Tiny: 0.9)."""
    drop_path: float = 0.1
    """Stochastic depth of the last block, rising linearly (MAE: 0.1 for Base)."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"finetune.epochs: expected at least 1, got {self.epochs}.")
        require(self.batch_size >= 1, f"finetune.batch_size: expected at least 1, got {self.batch_size}.")
        require(self.base_lr > 0, f"finetune.base_lr: expected more than 0, got {self.base_lr:g}.")
        check_range("finetune.layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)
        check_range("finetune.drop_path", self.drop_path, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One table of encoders."""

    protocols: str = ",".join(FROZEN)
    """Which, with commas between: knn, probe, lowshot on frozen features; partial, finetune."""
    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    knn: KnnConfig = field(default_factory=KnnConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    lowshot: LowShotConfig = field(default_factory=LowShotConfig)
    partial: PartialConfig = field(default_factory=PartialConfig)
    finetune: TuningConfig = field(default_factory=TuningConfig)
    cache: str = "runs/features"
    """Folder that keeps features, so that each image is seen once by each encoder, and fine-tuning runs."""
    batch_size: int = 64
    """Images that an encoder sees at once."""
    device: str = "auto"
    """PyTorch's name of the device; `auto`: CUDA where there is one."""
    random: bool = False
    """Evaluate random weights of each architecture, too."""
    shuffled: bool = False
    """Evaluate each encoder on shuffled training labels, too: a control that must give chance."""
    seed: int = 0
    """Of random weights, of shuffled labels, of the probe's order and of the small fine-tuning recipe."""
    num_heads: int | None = None
    """Attention heads, where weights of own sizes do not tell theirs."""
    json: str | None = None
    """File that the table is written to."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.protocol_names if name not in PROTOCOLS]
        require(
            bool(self.protocol_names) and not unknown,
            f"protocols: expected some of {','.join(PROTOCOLS)}, got {self.protocols or 'none'}.",
        )
        require(self.batch_size >= 1, f"batch_size: expected at least 1, got {self.batch_size}.")

    @property
    def protocol_names(self) -> tuple[str, ...]:
        """The protocols in the order given, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.protocols.split(",") if name.strip()))
