"""Random crops of images, and their resizing on the processor."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from fcmae.config import DataConfig


class Crop(NamedTuple):
    """A rectangle of an image, in pixels, and whether it is mirrored afterwards."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class Cut(NamedTuple):
    """An image and a crop of it that is not carried out yet."""

    image: Tensor
    """[C, H, W], uint8 or float32 in [0, 1]."""
    crop: Crop


@dataclass(frozen=True)
class RandomCut:
    """Draws crops as torchvision's RandomResizedCrop and RandomHorizontalFlip(0.5) do, in this order.

    Args:
        config: Size, crop and flip.
    """

    config: DataConfig
    _resized_crop: v2.RandomResizedCrop = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        height, width = self.config.size
        low, high = (ratio * width / height for ratio in self.config.crop_ratio)
        crop = v2.RandomResizedCrop(self.config.size, scale=self.config.crop_scale, ratio=(low, high))
        object.__setattr__(self, "_resized_crop", crop)

    def __call__(self, image: Tensor) -> Cut:
        place = self._resized_crop.make_params([image])
        flip = self.config.flip and torch.rand(1).item() < 0.5
        return Cut(image, Crop(**place, flip=flip))


@dataclass(frozen=True)
class RandomView:
    """The crop that `RandomCut` draws, resized and perhaps mirrored: pixels float32 in [0, 1].

    Args:
        config: Size, crop and flip; whether images of 8 bits are resized in 8 bits.
    """

    config: DataConfig
    _cut: RandomCut = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cut", RandomCut(self.config))

    def __call__(self, image: Tensor) -> Tensor:
        top, left, height, width, flip = self._cut(image).crop
        view = image[:, top : top + height, left : left + width]
        view = resize(view, self.config.size, in_8_bits=self.config.resize_8_bit)
        return view.flip(-1) if flip else view


def resize(image: Tensor, size: tuple[int, int], *, in_8_bits: bool) -> Tensor:
    """An image at another size, float32 in [0, 1]: bicubic, antialiased and clipped.

    Args:
        image: [C, H, W], uint8 or float32 in [0, 1].
        size: (height, width) in pixels.
        in_8_bits: Leave uint8 in 8 bits until it has that size.
    Returns:
        [C, *size], contiguous, in memory of its own.
    """
    if in_8_bits and image.dtype == torch.uint8:
        bytes_ = TF.resize(image, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
        return bytes_.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    resized = _resampled(image, size)
    if image.dtype == torch.uint8:
        resized.div_(255)
    return resized.clamp_(0, 1)  # bicubic interpolation overshoots at edges


def _resampled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """torchvision's bicubic, antialiased `resize` up to rounding, in less than half of its time.

    An embedding bag is a weighted sum of a table's rows, in vectors on the processor: here first of the
    image's rows, then of its columns as rows.
    """
    channels, height, width = image.shape
    new_height, new_width = size
    rows = image.permute(1, 2, 0).float().reshape(height, width * channels)
    places, weights = _taps(height, new_height)
    rows = F.embedding_bag(places, rows, mode="sum", per_sample_weights=weights)  # [new_height, W * C]
    places, weights = _taps(width, new_width)
    columns = rows.t().contiguous().view(width, channels * new_height)
    columns = F.embedding_bag(places, columns, mode="sum", per_sample_weights=weights)
    return columns.t().contiguous().view(channels, new_height, new_width)


def _taps(side: int, size: int) -> tuple[Tensor, Tensor]:
    """Which of `side` pixels make each of `size`, int64 [size, K], and with what weights, float32.

    As `on_device` has it for many crops at once; in numpy, whose small operations take half of torch's time.
    """
    scale = side / size
    stretch = max(scale, 1.0)
    centres = np.arange(0.5, size, dtype=np.float32) * np.float32(scale)
    first = np.floor(centres - 2 * stretch).clip(0).astype(np.int64)
    places = first[:, None] + np.arange(2 * math.ceil(2 * stretch) + 1)
    distances = abs(places.astype(np.float32) + np.float32(0.5) - centres[:, None])
    weights = cubic(distances / np.float32(stretch)) * (places < side)
    weights /= weights.sum(axis=-1, keepdims=True)
    return torch.from_numpy(places.clip(max=side - 1)), torch.from_numpy(weights)


Values = TypeVar("Values", np.ndarray, Tensor)


def cubic(x: Values) -> Values:
    """Bicubic interpolation's kernel with a = -1/2, PIL's and torch's antialiased one; 0 from x = 2 on.

    Its two pieces are -(x - 1) (x - 2)^2 / 2 up to 2, and up to 1 besides (x - 1)^2 (2 x - 1).

    Args:
        x: Distances, 0 or more, in pixels of the output where the image shrinks, else of the input.
    """
    near, far = x.clip(max=1), x.clip(max=2)
    return (near - 1) ** 2 * (2 * near - 1) - 0.5 * (far - 1) * (far - 2) ** 2
