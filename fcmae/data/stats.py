"""What a set of images is made of: mean and deviation of each channel, sizes, formats, unreadable files."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcmae.data.dataset import ImageDataset
from fcmae.data.decode import UnreadableImageError, unit
from fcmae.data.parallel import ordered_map
from fcmae.data.sources.remote import UnreachableError
from fcmae.errors import InputError


@dataclass(kw_only=True)
class Moments:
    """Count, mean and sum of squared deviations of each channel, merged as Chan et al. do."""

    count: int = 0
    mean: Tensor
    """[C], float64."""
    squares: Tensor
    """[C], float64; over `count`, the variance."""

    @classmethod
    def of(cls, pixels: Tensor) -> "Moments":
        """Those of one image [C, H, W]."""
        values = pixels.flatten(1).double()
        mean = values.mean(dim=1)
        return cls(count=values.shape[1], mean=mean, squares=(values - mean[:, None]).square_().sum(dim=1))

    def add(self, other: "Moments") -> None:
        """Take in the pixels of `other`."""
        count = self.count + other.count
        shift = other.mean - self.mean
        self.mean = self.mean + shift * (other.count / count)
        self.squares = self.squares + other.squares + shift.square() * (self.count * other.count / count)
        self.count = count

    @property
    def std(self) -> Tensor:
        """[C], float64."""
        return (self.squares / self.count).sqrt()


@dataclass(kw_only=True)
class Stats:
    """What `measure` found."""

    moments: Moments
    images: int = 0
    """Readable ones."""
    widths: "array[int]" = field(default_factory=lambda: array("l"))
    heights: "array[int]" = field(default_factory=lambda: array("l"))
    bad: list[str] = field(default_factory=list)
    """`name: reason` of each unreadable image."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "mean": self.moments.mean.tolist(),
            "std": self.moments.std.tolist(),
            "width": _spread(self.widths),
            "height": _spread(self.heights),
            "shorter_side": _spread(self.shorter_sides),
            "bad": self.bad,
        }

    @property
    def shorter_sides(self) -> list[int]:
        """Of each image, in pixels."""
        return [min(pair) for pair in zip(self.widths, self.heights, strict=True)]

    def config_lines(self) -> str:
        """`data.in_chans`, `data.mean` and `data.std` as a configuration's YAML."""
        mean, std = (
            ", ".join(f"{value:.5g}" for value in values.tolist())
            for values in (self.moments.mean, self.moments.std)
        )
        return f"data:\n  in_chans: {len(self.moments.mean)}\n  mean: [{mean}]\n  std: [{std}]"


def measure(dataset: ImageDataset, indices: Sequence[int], *, workers: int) -> Stats:
    """Mean and standard deviation over all pixels in [0, 1], sizes, and the unreadable images.

    Every pixel counts the same, so that larger images weigh more. One image is in memory at a time.

    Args:
        dataset: Images at their full size.
        indices: Which of them.
        workers: Processes that decode; 0: this one.
    Raises:
        InputError: none is readable, or a file at a URL is not.
    """
    stats: Stats | None = None
    bad: list[str] = []
    for found in ordered_map(partial(_look_at, dataset), indices, workers=workers):
        if isinstance(found, UnreachableError):
            raise found
        if isinstance(found, str):
            bad.append(found)
            continue
        moments, height, width = found
        if stats is None:
            stats = Stats(moments=moments)
        else:
            stats.moments.add(moments)
        stats.images += 1
        stats.heights.append(height)
        stats.widths.append(width)
    if stats is None:
        first = f"; the first is {bad[0]}" if bad else ""
        raise InputError(
            f"data: expected a readable image, got {len(bad)} unreadable{first}. Check the files."
        )
    stats.bad = bad
    return stats


def _look_at(dataset: ImageDataset, index: int) -> tuple[Moments, int, int] | str | UnreachableError:
    try:
        pixels = dataset.load(index)
    except UnreachableError as error:
        return error
    except (UnreadableImageError, InputError) as error:  # damaged, or of other channels
        return str(error)
    return Moments.of(unit(pixels)), pixels.shape[1], pixels.shape[2]


class Kind(NamedTuple):
    """What the header of an image file says."""

    format: str
    mode: str
    """PIL's, or the type of an array."""
    channels: int
    """Of the colours, without transparency."""


def kinds(paths: Iterable[str]) -> Counter[Kind]:
    """How many files there are of each kind; unreadable ones are left out, `measure` names them."""
    found: Counter[Kind] = Counter()
    for path in paths:
        # As in decode_image, damage shows as any exception.
        with suppress(Exception):
            found[_kind(path)] += 1
    return found


def _kind(path: str) -> Kind:
    if path.lower().endswith(".npy"):
        array = np.lib.format.open_memmap(path, mode="r")
        channels = 1 if array.ndim == 2 else min(array.shape[0], array.shape[2])
        return Kind("NPY", str(array.dtype), channels)
    with Image.open(path) as image:
        bands = 3 if image.mode in ("P", "CMYK") else len([band for band in image.getbands() if band != "A"])
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" and bands == 1 else 1
        return Kind(image.format or "unknown", image.mode, pages * bands)


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def save_picture(path: Path, stats: Stats) -> None:
    """Histograms of the shorter sides and of the aspect ratios.

    Raises:
        OSError: the file cannot be written.
    """
    # Here, as only this needs matplotlib, and every training imports this package.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    aspects = torch.tensor(stats.widths) / torch.tensor(stats.heights)
    panels = (("shorter side, pixels", stats.shorter_sides), ("width / height", aspects.tolist()))
    for axes, (label, values) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.hist(values, bins=40, color="#4269d0")
        axes.set_xlabel(label)
        axes.set_ylabel("images")
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
