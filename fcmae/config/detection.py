"""Detection: annotated images, Mask R-CNN, and how it is tested."""

from dataclasses import dataclass, field
from typing import Literal

from fcmae.config.checks import check_range, require
from fcmae.config.downstream import AnnotatedConfig, DownstreamTrainConfig, PyramidConfig
from fcmae.config.runs import RunConfig


@dataclass(frozen=True, kw_only=True)
class DetectDataConfig(AnnotatedConfig):
    """Images and their instances, as COCO writes them."""

    source: Literal["coco", "samples"] = "samples"
    """`coco`: a JSON file of instances and a folder of images. `samples`: built-in photographs."""
    root: str | None = None
    """Folder that the file names in `annotations` are relative to."""
    annotations: str | None = None
    """COCO JSON of the training images: instances with boxes and masks."""
    val_root: str | None = None
    """Folder of the validation images. None: `root`."""
    val_annotations: str | None = None
    """COCO JSON of the validation images. None: `val_fraction` of the training images is held out."""
    val_fraction: float = 0.1
    """Share of the images held out without `val_annotations`; 0: validated on what is trained on."""
    empty_images: bool = False
    """Train on images without instances too (COCO's practice: not)."""
    image_size: int | tuple[int, int] = 1024
    """Side of the square canvas of a training image, or (height, width), in pixels."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: size of the image relative to the largest that fits the canvas (the papers: 0.1 to
    2); 1 to 1: off."""
    flip: bool = True
    """Mirror half of the images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        coco = self.source == "coco"
        for name in ("root", "annotations"):
            value = getattr(self, name)
            require(
                coco == (value is not None),
                f"data.{name}: expected {'a path' if coco else 'none'} with data.source={self.source}, got "
                f"{value or 'none'}. " + (f"Add --data.{name}=PATH." if coco else "Add --data.source=coco."),
            )
        for name in ("val_root", "val_annotations"):
            value = getattr(self, name)
            require(
                coco or value is None,
                f"data.{name}: expected none with data.source={self.source}, got {value}. "
                "Add --data.source=coco.",
            )
        require(min(self.size) > 0, f"data.image_size: expected positive sides, got {self.image_size}.")
        check_range("data.val_fraction", self.val_fraction, 0.0, 0.9)
        low, high = self.scale
        require(0 < low <= high, f"data.scale: expected 0 < low <= high, got {self.scale}.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the canvas in pixels."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(PyramidConfig):
    """Mask R-CNN on the pyramid; defaults are those of He et al. 2017 with FPN."""

    fpn_dim: int = 256
    """Width of the pyramid's maps behind the FPN, and of the convolutions of the heads."""
    head_dim: int = 1024
    """Width of the box head's linear layers."""
    box_head: Literal["2fc", "4conv1fc"] = "2fc"
    """Layers of the box head (ViTDet, ConvMAE: 4conv1fc)."""
    rpn_convs: int = 1
    """3 x 3 convolutions of the region proposals (ViTDet, ConvMAE: 2)."""
    norm: Literal["none", "layer"] = "none"
    """`layer`: a LayerNorm behind each convolution of the FPN and the heads (ViTDet)."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side in pixels of the anchors at strides 4, 8, 16, 32 and 64."""
    box_samples: int = 512
    """Proposals of an image that the heads are trained on; at most a quarter of them show an instance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fpn_dim", "head_dim", "rpn_convs", "box_samples"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name}: expected at least 1, got {value}.")
        require(
            len(self.anchor_sizes) == 5 and min(self.anchor_sizes) > 0,
            f"model.anchor_sizes: expected five positive sides, got {self.anchor_sizes}.",
        )


@dataclass(frozen=True, kw_only=True)
class DetectTestConfig:
    """How instances are detected and duplicates suppressed."""

    short_sides: tuple[int, ...] = (800,)
    """Pixels of the image's shorter side; several: the image is seen at each, the boxes are pooled and the
    masks averaged."""
    long_side: int = 1333
    """Most pixels of the longer side, at each of the sizes."""
    flip: bool = False
    """See the image mirrored as well."""
    nms: Literal["hard", "linear", "gaussian"] = "hard"
    """Boxes that overlap a better one of their class are dropped (`hard`), or their scores lowered by 1 minus
    the overlap (`linear`) or a Gaussian of it (soft-NMS, Bodla et al. 2017)."""
    nms_threshold: float = 0.5
    """Intersection over union from which boxes are dropped or, by `linear`, lowered."""
    nms_sigma: float = 0.5
    """Of `gaussian`: scores are multiplied by exp(-overlap^2 / sigma)."""
    score_threshold: float = 0.05
    """Detections below are dropped before duplicates are suppressed."""
    detections: int = 100
    """Most detections of an image."""
    overlay_score: float = 0.5
    """Detections below are not drawn."""

    def __post_init__(self) -> None:
        require(
            len(self.short_sides) > 0 and min(self.short_sides) > 0,
            f"test.short_sides: expected positive sides, got {self.short_sides}.",
        )
        require(
            self.long_side >= max(self.short_sides),
            f"test.long_side: expected at least the largest of test.short_sides, {max(self.short_sides)}, "
            f"got {self.long_side}.",
        )
        check_range("test.nms_threshold", self.nms_threshold, 0.0, 1.0)
        check_range("test.score_threshold", self.score_threshold, 0.0, 1.0)
        check_range("test.overlay_score", self.overlay_score, 0.0, 1.0)
        require(self.nms_sigma > 0, f"test.nms_sigma: expected more than 0, got {self.nms_sigma:g}.")
        require(self.detections >= 1, f"test.detections: expected at least 1, got {self.detections}.")


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """One run of detection."""

    data: DetectDataConfig = field(default_factory=DetectDataConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    train: DownstreamTrainConfig = field(default_factory=DownstreamTrainConfig)
    test: DetectTestConfig = field(default_factory=DetectTestConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: str = "auto"
    """`auto`: go on from the newest good checkpoint of `run.dir`, or start; `none`: start; or a file."""
