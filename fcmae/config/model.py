"""What is pretrained, by which method, and what is fine-tuned."""

from dataclasses import dataclass
from typing import Literal, get_args

from fcmae.config.checks import check_range, require, require_halves

Execution = Literal["sparse", "masked_dense", "leaky_dense"]
EXECUTIONS: tuple[str, ...] = get_args(Execution)
Gating = Literal[
    "grn",
    "grn_l1",
    "grn_mean",
    "grn_standardise",
    "grn_inverse",
    "grn_no_norm",
    "none",
    "layer_scale",
    "se",
    "cbam",
]
GATINGS: tuple[str, ...] = get_args(Gating)
Decoder = Literal["convnext", "transformer", "unet"]
DECODERS: tuple[str, ...] = get_args(Decoder)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every method has: an encoder and a mask. The method's own class adds the rest."""

    method: str
    """`fcmae`, `convmae`, `mae` or `msn`: decides which other fields there are."""
    backbone: str
    mask_ratio: float
    """Share of the patches that is hidden; `int(patches * (1 - mask_ratio))` stay visible."""
    backend: str = "auto"
    """Engine of the sparse operations."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, rising linearly (the papers: 0 in pretraining)."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None: the preset's."""
    dims: tuple[int, ...] | None = None
    """Width of each stage; None: the preset's."""

    def __post_init__(self) -> None:
        require(
            0.0 < self.mask_ratio < 1.0,
            f"model.mask_ratio: expected a value in (0, 1), got {self.mask_ratio:g}. "
            f"The paper uses {type(self).mask_ratio:g}.",
        )
        check_range("model.drop_path", self.drop_path, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class FCMAEConfig(ModelConfig):
    """FCMAE: a ConvNeXt V2 sees some patches, a small decoder paints the others."""

    method: Literal["fcmae"] = "fcmae"
    backbone: str = "convnextv2_tiny"
    patch_size: int = 32
    """Side of a masking cell in pixels, a multiple of the encoder's largest stride (the paper: 32)."""
    mask_ratio: float = 0.6
    """Share of the cells that is hidden; `int(cells * (1 - mask_ratio))` stay visible (the paper: 0.6)."""
    decoder: Decoder = "convnext"
    """`convnext`: blocks at the last stage's sites. `transformer`: MAE's decoder, on the same sites. `unet`:
    from the last stage's sites to the first's, with the features of every stage (the paper: convnext)."""
    decoder_dim: int = 512
    """Width of the decoder (the paper: 512). A `unet` has it at the last stage and halves it at each finer
    one; a `transformer` has heads of 32 channels, as MAE's."""
    decoder_depth: int = 1
    """Blocks in the decoder, in a `unet` at each stage (the paper: 1)."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and variance (the paper: on)."""
    execution: Execution = "sparse"
    """`sparse`: visible sites only. `masked_dense`: the same, all sites. `leaky_dense`: input masked."""
    gating: Gating = "grn"
    """What the encoder's blocks have in GRN's place; the decoder keeps GRN. `grn`: L2 norms over their mean.
    `grn_l1`, `grn_mean`: L1 norms, averages (global average pooling). `grn_standardise`, `grn_inverse`,
    `grn_no_norm`: norms made mean 0 and variance 1, 1 / their mean, as they are. `none`. `layer_scale`:
    ConvNeXt V1's. `se`, `cbam`: squeeze-and-excitation, CBAM (the paper: grn, compared with the others)."""
    grn_scope: Literal["image", "batch"] = "image"
    """Sites over which GRN takes its statistics; `batch` is what the original sparse code does."""
    init: Literal["002", "original"] = "002"
    """`002`: weights of std 0.02. `original`: the original code's accidental std 1.0 in the encoder."""
    stem_stride: int | None = None
    """Pixels per site of the first stage; None: the preset's 4. 1 or 2 suit small images."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What is fine-tuned: a dense classifier, from pretrained weights or from random ones."""

    backbone: str = "convnextv2_tiny"
    weights: str | None = None
    """A pretraining checkpoint, its run folder, or converted weights; None: random weights."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, rising linearly."""
    head_init_scale: float = 0.001
    """Factor on the head's initial weights (the paper: 0.001; 1.0 suits training from scratch)."""
    num_heads: int | None = None
    """Attention heads of a ConvMAE or ViT; None: the preset's. Weights of own sizes do not tell theirs."""
    gating: Gating | None = None
    """What a ConvNeXt V2's blocks have in GRN's place; None: that of the weights, or grn. `none` leaves the
    gate of the weights out; where they have none, any can be added, and begins anew."""
    global_pool: Literal["avg", "token"] | None = None
    """What a ViT's head reads: `avg`, the patches' mean (MAE), or `token`, the class token; None: avg."""
    train_last_blocks: float | None = None
    """Blocks that are trained, counted from the head, which always is; all before them stay as they were.
    0.5: the MLP of the last block (MAE, figure 9: 0, 0.5, 1, 2, 4 ...). None: everything is trained."""

    def __post_init__(self) -> None:
        check_range("model.drop_path", self.drop_path, 0.0, 1.0)
        require_halves("model.train_last_blocks", self.train_last_blocks)
