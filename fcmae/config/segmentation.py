"""Segmentation: images with label maps, UPerNet, and how it is tested."""

from dataclasses import dataclass, field
from typing import Literal

from fcmae.config.checks import check_range, require
from fcmae.config.downstream import AnnotatedConfig, DownstreamTrainConfig, PyramidConfig
from fcmae.config.runs import RunConfig


@dataclass(frozen=True, kw_only=True)
class SegmentDataConfig(AnnotatedConfig):
    """Images and their label maps, as ADE20K has them: two folders of the same file names."""

    source: Literal["folder", "samples"] = "samples"
    """`folder`: `root` and `labels`. `samples`: built-in photographs."""
    root: str | None = None
    """Folder of the training images, with subfolders or without."""
    labels: str | None = None
    """Folder of their label maps: PNGs of one channel whose values are classes, `a/b.png` for `a/b.jpg`."""
    val_root: str | None = None
    """Folder of the validation images. None: `val_fraction` of the training images is held out."""
    val_labels: str | None = None
    """Folder of their label maps."""
    val_fraction: float = 0.1
    """Share of the images held out without `val_root`; 0: validated on what is trained on."""
    num_classes: int = 4
    """Classes: values 0 to `num_classes` - 1 of the label maps, or 1 to `num_classes` with
    `reduce_zero_label`."""
    reduce_zero_label: bool = False
    """0 in the label maps is not annotated, and class k is stored as k + 1 (ADE20K)."""
    ignore_index: int = 255
    """Value in the label maps of pixels that are neither trained on nor counted."""
    image_size: int | tuple[int, int] = 512
    """Side of the square crop, or (height, width), in pixels: of training, and of sliding windows."""
    resize: tuple[int, int] | None = (512, 2048)
    """The image at scale 1 is the largest whose shorter and longer side are at most these (the papers); None:
    as it is."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Random scale in training, relative to `resize` (the papers: 0.5 to 2); 1 to 1: off."""
    max_class_share: float = 0.75
    """A crop is drawn anew, up to ten times, while one class has more than this share of it (the papers:
    0.75); 1: off."""
    flip: bool = True
    """Mirror half of the images."""
    jitter: bool = True
    """Random brightness, contrast, saturation and hue (the papers: on); of three channels only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        folder = self.source == "folder"
        for name in ("root", "labels"):
            value = getattr(self, name)
            require(
                folder == (value is not None),
                f"data.{name}: expected {'a folder' if folder else 'none'} with data.source={self.source}, "
                f"got {value or 'none'}. "
                + (f"Add --data.{name}=DIR." if folder else "Add --data.source=folder."),
            )
        require(
            (self.val_root is None) == (self.val_labels is None),
            f"data.val_labels: expected a folder with data.val_root and none without, got {self.val_labels}. "
            "Set both or none.",
        )
        require(
            folder or self.val_root is None,
            f"data.val_root: expected none with data.source={self.source}, got {self.val_root}. "
            "Add --data.source=folder.",
        )
        require(self.num_classes >= 2, f"data.num_classes: expected at least 2, got {self.num_classes}.")
        require(self.ignore_index >= 0, f"data.ignore_index: expected 0 or more, got {self.ignore_index}.")
        require(min(self.size) > 0, f"data.image_size: expected positive sides, got {self.image_size}.")
        require(
            self.resize is None or 0 < self.resize[0] <= self.resize[1],
            f"data.resize: expected [shorter, longer] side in pixels, got {self.resize}.",
        )
        low, high = self.scale
        require(0 < low <= high, f"data.scale: expected 0 < low <= high, got {self.scale}.")
        check_range("data.val_fraction", self.val_fraction, 0.0, 0.9)
        check_range("data.max_class_share", self.max_class_share, 0.0, 1.0, open_low=True)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the crop in pixels."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(PyramidConfig):
    """UPerNet on the pyramid; defaults are those of ConvNeXt's authors."""

    head_dim: int = 512
    """Width of UPerNet (ConvMAE: 768)."""
    auxiliary_dim: int = 256
    """Width of the auxiliary FCN head, which reads stride 16 and is used in training only; 0: none."""
    auxiliary_weight: float = 0.4
    """Weight of the auxiliary head's loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.head_dim >= 1, f"model.head_dim: expected at least 1, got {self.head_dim}.")
        require(
            self.auxiliary_dim >= 0, f"model.auxiliary_dim: expected 0 or more, got {self.auxiliary_dim}."
        )
        require(
            self.auxiliary_weight >= 0,
            f"model.auxiliary_weight: expected 0 or more, got {self.auxiliary_weight:g}.",
        )


@dataclass(frozen=True, kw_only=True)
class SegmentTestConfig:
    """How whole images are segmented."""

    window: int | tuple[int, int] | None = None
    """Side of the overlapping windows, or (height, width), in pixels, whose outputs are averaged; None:
    `data.image_size`. 0: the whole image at once."""
    stride: int | tuple[int, int] | None = None
    """Pixels between windows; None: two thirds of the window (the papers: 341 of 512)."""
    scales: tuple[float, ...] = (1.0,)
    """Scales of the image relative to `data.resize`, whose probabilities are averaged (multi-scale test of
    the papers: 0.5, 0.75, 1, 1.25, 1.5, 1.75)."""
    flip: bool = False
    """See the image mirrored as well."""
    batch_size: int = 4
    """Windows at once; changes the memory, not the numbers."""

    def __post_init__(self) -> None:
        windows = (self.window,) if isinstance(self.window, int) else self.window
        require(
            windows is None or self.window == 0 or min(windows) >= 1,
            f"test.window: expected positive pixels or 0, got {self.window}.",
        )
        strides = (self.stride,) if isinstance(self.stride, int) else self.stride
        require(
            strides is None or min(strides) >= 1, f"test.stride: expected positive pixels, got {self.stride}."
        )
        require(
            len(self.scales) > 0 and min(self.scales) > 0,
            f"test.scales: expected positive scales, got {self.scales}.",
        )
        require(self.batch_size >= 1, f"test.batch_size: expected at least 1, got {self.batch_size}.")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """One run of segmentation."""

    data: SegmentDataConfig = field(default_factory=SegmentDataConfig)
    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    train: DownstreamTrainConfig = field(default_factory=DownstreamTrainConfig)
    test: SegmentTestConfig = field(default_factory=SegmentTestConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """`auto`: go on from the newest good checkpoint of `run.dir`, or start; `none`: start; or a file."""
