"""What a run is made of: the only place where defaults live.

A YAML file holds the differences from these defaults, one file a run; `--section.field=value` overrides both.
Lengths of training are counted in optimiser steps, learning rates as `base_lr` per 256 images:
`lr = base_lr * batch_size * accumulate * devices / 256`.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from fcmae.errors import InputError

Execution = Literal["sparse", "masked_dense", "leaky_dense"]
EXECUTIONS: tuple[str, ...] = get_args(Execution)


def require(ok: bool, message: str) -> None:
    """Raise InputError with `message` unless `ok`."""
    if not ok:
        raise InputError(message)


def _check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    inside = (value > low if open_low else value >= low) and value <= high
    bracket = "(" if open_low else "["
    require(inside, f"{name}: expected a value in {bracket}{low:g}, {high:g}], got {value:g}.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images: where they are and how they become tensors."""

    source: Literal["folder", "digits"] = "folder"
    """`folder`: image files below `root`, nested or flat. `digits`: scikit-learn's scanned digits."""
    root: str | None = None
    """Folder of training images; for fine-tuning, one subfolder a class."""
    val_root: str | None = None
    """Folder of validation images (fine-tuning). None: `val_fraction` of the training images is held out."""
    val_fraction: float = 0.1
    """Share of the images held out when there is no `val_root`."""
    labels_per_class: int | None = None
    """Fine-tune on this many labelled images of each class; None: all."""
    image_size: int | tuple[int, int] = 224
    """Side of the square crop, or (height, width), in pixels."""
    in_chans: int = 3
    """Channels of the network's input; images of other channels are converted where that has one meaning."""
    mean: tuple[float, ...] | None = None
    """Mean per channel of pixels in [0, 1]. None: ImageNet's for 3 channels, 0.5 otherwise."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel of pixels in [0, 1]. None: ImageNet's for 3 channels, 0.25 otherwise."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of the random resized crop as a share of the image (the paper: 0.2 to 1)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of the random resized crop, relative to that of `image_size`."""
    flip: bool = True
    """Mirror half of the images."""
    workers: int = 2
    """Loader processes; 0 decodes in the training process."""
    max_bad_images: int = 100
    """Unreadable images that are skipped, counted and named before the run stops."""

    def __post_init__(self) -> None:
        require(
            self.source != "folder" or self.root is not None,
            "data.root: expected a folder of images, got none. Add --data.root DIR.",
        )
        require(
            self.source == "folder" or (self.root is None and self.val_root is None),
            f"data.root: expected none with data.source={self.source}, got {self.root or self.val_root}. "
            "Add --data.source=folder.",
        )
        height, width = self.size
        require(height > 0 and width > 0, f"data.image_size: expected positive sides, got {self.image_size}.")
        require(self.in_chans > 0, f"data.in_chans: expected at least 1, got {self.in_chans}.")
        _check_range("data.val_fraction", self.val_fraction, 0.0, 0.9)
        require(
            self.labels_per_class is None or self.labels_per_class >= 1,
            f"data.labels_per_class: expected at least 1, got {self.labels_per_class}.",
        )
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1, f"data.crop_scale: expected 0 < low <= high <= 1, got {self.crop_scale}."
        )
        low, high = self.crop_ratio
        require(0 < low <= high, f"data.crop_ratio: expected 0 < low <= high, got {self.crop_ratio}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(
                values is None or len(values) == self.in_chans,
                f"data.{name}: expected {self.in_chans} values (data.in_chans), got {values}.",
            )
        require(self.std is None or min(self.std) > 0, f"data.std: expected positive values, got {self.std}.")
        require(
            self.max_bad_images >= 0, f"data.max_bad_images: expected 0 or more, got {self.max_bad_images}."
        )
        require(self.workers >= 0, f"data.workers: expected 0 or more, got {self.workers}.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input, in pixels."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is pretrained: method, encoder, mask and decoder."""

    method: Literal["fcmae"] = "fcmae"
    backbone: str = "convnextv2_tiny"
    patch_size: int = 32
    """Side of a masking cell in pixels, a multiple of the encoder's largest stride (the paper: 32)."""
    mask_ratio: float = 0.6
    """Share of the cells that is hidden; `int(cells * (1 - mask_ratio))` stay visible (the paper: 0.6)."""
    decoder_dim: int = 512
    """Width of the decoder (the paper: 512)."""
    decoder_depth: int = 1
    """ConvNeXt V2 blocks in the decoder (the paper: 1)."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and variance (the paper: on)."""
    execution: Execution = "sparse"
    """`sparse`: visible sites only. `masked_dense`: the same, all sites. `leaky_dense`: input masked."""
    backend: str = "auto"
    """Engine of the sparse operations."""
    grn_scope: Literal["image", "batch"] = "image"
    """Sites over which GRN takes its statistics; `batch` is what the original sparse code does."""
    init: Literal["002", "original"] = "002"
    """`002`: weights of std 0.02. `original`: the original code's accidental std 1.0 in the encoder."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, rising linearly (the paper: 0 in pretraining)."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None: the preset's."""
    dims: tuple[int, ...] | None = None
    """Width of each stage; None: the preset's."""
    stem_stride: int | None = None
    """Pixels per site of the first stage; None: the preset's 4. 1 or 2 suit small images."""

    def __post_init__(self) -> None:
        require(
            0.0 < self.mask_ratio < 1.0,
            f"model.mask_ratio: expected a value in (0, 1), got {self.mask_ratio:g}. The paper uses 0.6.",
        )
        _check_range("model.drop_path", self.drop_path, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What is fine-tuned: a dense timm classifier, from pretrained weights or from random ones."""

    backbone: str = "convnextv2_tiny"
    weights: str | None = None
    """A pretraining checkpoint, its run folder, or converted weights; None: random weights."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, rising linearly."""
    head_init_scale: float = 0.001
    """Factor on the head's initial weights (the paper: 0.001; 1.0 suits training from scratch)."""

    def __post_init__(self) -> None:
        _check_range("model.drop_path", self.drop_path, 0.0, 1.0)


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
    min_lr: float = 0.0
    """Learning rate at the last step."""
    warmup_steps: int = 12_500
    """Steps of linear warm-up (the paper: 40 epochs of 800); a shorter run stays in its warm-up."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = None
    """Largest norm of the gradient; None: not clipped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast; weights and optimiser state stay in float32."""
    compile: bool = False
    """Run the network through torch.compile."""
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
        require(self.base_lr > 0, f"train.base_lr: expected a positive rate, got {self.base_lr:g}.")


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
    """`single`: a layer per block (Atto to Tiny). `group`: twelve groups (Base to Huge)."""
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
        _check_range("train.layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)
        _check_range("train.label_smoothing", self.label_smoothing, 0.0, 1.0)
        _check_range("train.random_erasing", self.random_erasing, 0.0, 1.0)
        require(
            self.evaluate_every >= 1, f"train.evaluate_every: expected at least 1, got {self.evaluate_every}."
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run's files go, and on what it runs."""

    dir: str = "runs/default"
    """Run folder: config.yaml, log.jsonl, tensorboard/, checkpoints/, reconstructions/."""
    accelerator: str = "auto"
    """Lightning Fabric's name of the hardware: auto, cpu, cuda, mps."""
    devices: int = 1
    """Processes of one node; each has its own device."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """`auto`: go on from the newest good checkpoint of `run.dir`, or start; `none`: start; or a file."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning run."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="digits"))
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """As in pretraining."""
