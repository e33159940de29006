"""Images: where they are, and how they become tensors."""

from dataclasses import dataclass
from typing import Literal

from fcmae.config.checks import check_range, require


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Pixels of images, and the processes that read them."""

    in_chans: int = 3
    """Channels of the network's input; images of other channels are converted where that has one meaning."""
    mean: tuple[float, ...] | None = None
    """Mean per channel of pixels in [0, 1]. None: ImageNet's for 3 channels, 0.5 otherwise."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel of pixels in [0, 1]. None: ImageNet's for 3 channels, 0.25 otherwise."""
    workers: int = 2
    """Loader processes; 0 decodes in the training process."""
    timeout: float = 600.0
    """Seconds to wait for a batch from the loader processes before the run stops; 0: for ever."""
    max_bad_images: int = 100
    """Unreadable images that are skipped, counted and named before the run stops."""

    def __post_init__(self) -> None:
        require(self.in_chans > 0, f"data.in_chans: expected at least 1, got {self.in_chans}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(
                values is None or len(values) == self.in_chans,
                f"data.{name}: expected {self.in_chans} values (data.in_chans), got {values}.",
            )
        require(self.std is None or min(self.std) > 0, f"data.std: expected positive values, got {self.std}.")
        require(
            self.max_bad_images >= 0, f"data.max_bad_images: expected 0 or more, got {self.max_bad_images}."
        )
        require(self.timeout >= 0, f"data.timeout: expected 0 or more, got {self.timeout:g}.")
        require(self.workers >= 0, f"data.workers: expected 0 or more, got {self.workers}.")


@dataclass(frozen=True, kw_only=True)
class DataConfig(PixelConfig):
    """Images: where they are and how they become tensors."""

    source: Literal["folder", "shards", "parquet", "arrays", "digits"] = "folder"
    """`folder`: image files below `root`, nested or flat. `shards`: WebDataset tar files. `parquet`:
    Parquet files or an Arrow dataset, with the library `datasets`. `arrays`: all images in one `.npy` file.
    `digits`: scikit-learn's scanned digits."""
    root: str | None = None
    """Folder of training images; for fine-tuning, one subfolder a class. Of shards: the folder that
    `fcmae data shard` wrote, one of other tar files, or a pattern, `train-{000..146}.tar`; also the URL of a
    folder with a manifest or of a pattern, or `pipe:` and a command. Of Parquet: a folder or pattern of
    files, or the folder of a dataset that `datasets` saved. Of arrays: a `.npy` file [N, C, H, W],
    [N, H, W, C] or [N, H, W] of uint8, uint16, int16 or float; read through a memory map, so it may exceed
    the memory."""
    image_column: str | None = None
    """Of Parquet: the column of the images. None: the only one that holds bytes of images."""
    label_column: str | None = None
    """Of Parquet: the column of the classes. None: the only one of class names, else `label`."""
    channel_axis: Literal["auto", "first", "last"] = "auto"
    """Of arrays, where the channels are. `auto`: the axis of length `in_chans`, else the shorter one."""
    labels: str | None = None
    """Of arrays, for fine-tuning: a `.npy` file [N] of class numbers from 0 on."""
    shuffle_buffer: int | None = None
    """Of shards: an image of a pass comes at most this many places earlier or later than in a walk through
    the shards, which are shuffled themselves; so only few shards are read at a time. None: 10 000 for shards
    at URLs, no limit for those on a disk."""
    cache_dir: str = "~/.cache/fcmae"
    """Folder on this machine for copies of shards at URLs and of Parquet files as Arrow files, shared by all
    processes and runs."""
    cache_gb: float = 100.0
    """Most that copies of shards take up; the least recently read are removed."""
    val_root: str | None = None
    """Folder of validation images (fine-tuning). None: `val_fraction` of the training images is held out."""
    val_fraction: float = 0.1
    """Share of the images held out when there is no `val_root`."""
    labels_per_class: int | None = None
    """Fine-tune on this many labelled images of each class; None: all."""
    image_size: int | tuple[int, int] = 224
    """Side of the square crop, or (height, width), in pixels."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of the random resized crop as a share of the image (the paper: 0.2 to 1)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of the random resized crop, relative to that of `image_size`."""
    resize_8_bit: bool = False
    """Resize images of 8 bits in 8 bits, as PIL does, in less time; off: in float32, without rounding."""
    transform_on: Literal["loader", "device"] = "loader"
    """Where training's crops are resized, flipped and normalised. `device`: the loader processes only decode,
    draw the crops and send their bytes; the images are the same up to the rounding of float32."""
    flip: bool = True
    """Mirror half of the images."""
    repeats: int = 1
    """Random crops, each with a mask of its own, of one decoded image, next to each other in a batch. A pass
    over the images takes this many times as many steps; a divisor of `train.batch_size`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.source == "digits" or self.root is not None,
            "data.root: expected a .npy file, got none. Add --data.root FILE."
            if self.source == "arrays"
            else "data.root: expected a folder of images, got none. Add --data.root DIR.",
        )
        require(
            self.source != "digits" or (self.root is None and self.val_root is None),
            f"data.root: expected none with data.source=digits, got {self.root or self.val_root}. "
            "Add --data.source=folder.",
        )
        require(
            self.source != "arrays" or self.val_root is None,
            f"data.val_root: expected none with data.source=arrays, got {self.val_root}. "
            "Set data.val_fraction.",
        )
        require(
            self.source == "arrays" or self.labels is None,
            f"data.labels: expected none with data.source={self.source}, got {self.labels}. Remove it.",
        )
        require(
            self.shuffle_buffer is None or (self.source == "shards" and self.shuffle_buffer >= 0),
            f"data.shuffle_buffer: expected 0 or more with data.source=shards and none otherwise, got "
            f"{self.shuffle_buffer} with {self.source}. Change one of both.",
        )
        require(
            self.source == "parquet" or (self.image_column is None and self.label_column is None),
            f"data.image_column, data.label_column: expected none with data.source={self.source}, got "
            f"{self.image_column}, {self.label_column}. Remove them.",
        )
        require(self.cache_gb > 0, f"data.cache_gb: expected more than 0, got {self.cache_gb:g}.")
        height, width = self.size
        require(height > 0 and width > 0, f"data.image_size: expected positive sides, got {self.image_size}.")
        check_range("data.val_fraction", self.val_fraction, 0.0, 0.9)
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
        require(
            not self.resize_8_bit or self.transform_on == "loader",
            "data.resize_8_bit: expected false with data.transform_on=device, which resizes in float32, got "
            "true. Remove one of both.",
        )
        require(self.repeats >= 1, f"data.repeats: expected at least 1, got {self.repeats}.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input, in pixels."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side
