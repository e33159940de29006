"""Random crops in two halves: a loader process draws and packs them, the device resizes and normalises them.

What crosses between the two are the pixels that the crops need, in the type in which they were decoded.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from fcmae.config import DataConfig
from fcmae.data.decode import unit
from fcmae.data.transforms.crops import Cut, cubic
from fcmae.data.transforms.standard import mean_std

_CANVAS = 2**26
"""Values of the largest canvas that crops are laid on together: 256 MiB of float32."""


class PackedCrops(NamedTuple):
    """The crops of a batch, of any sizes, over pixels that neighbours of one image share."""

    crops: Tensor
    """[B, 5], int64: the first pixel, the pixels from a row to the next, height, width, and 1 to mirror."""
    pixels: Tensor
    """[P, C]; uint8, or float32 in [0, 1] where an image of the batch was not of 8 bits."""


def pack(cuts: list[Cut]) -> PackedCrops:
    """The crops of a batch; of each image, the smallest rectangle that holds its crops is copied, once.

    Args:
        cuts: B of them; those of one image, the same tensor, lie next to each other.
    """
    in_8_bits = all(cut.image.dtype == torch.uint8 for cut in cuts)
    crops: list[tuple[int, int, int, int, int]] = []
    parts: list[Tensor] = []
    first = 0
    for _, group in groupby(cuts, key=lambda cut: id(cut.image)):
        members = list(group)
        own = [cut.crop for cut in members]
        top, left = min(crop.top for crop in own), min(crop.left for crop in own)
        bottom = max(crop.top + crop.height for crop in own)
        right = max(crop.left + crop.width for crop in own)
        part = members[0].image[:, top:bottom, left:right]
        parts.append(part if in_8_bits else unit(part))
        row = right - left
        for crop in own:
            start = first + (crop.top - top) * row + crop.left - left
            crops.append((start, row, crop.height, crop.width, int(crop.flip)))
        first += (bottom - top) * row
    pixels = parts[0].new_empty(first, len(parts[0]))
    first = 0
    for part in parts:
        channels, height, width = part.shape
        last = first + height * width
        pixels[first:last].view(height, width, channels).copy_(part.permute(1, 2, 0))
        first = last
    return PackedCrops(torch.tensor(crops), pixels)


class DeviceCrops:
    """The device's half: normalised images of packed crops.

    Each image is, up to the rounding of float32, what `pretrain_transform` makes of the same crop without
    `resize_8_bit`: both are the same weighted sums of pixels, here as two matrix products over crops that
    are laid on canvases of equal sizes. Nothing waits for the device.

    Args:
        config: Size and normalisation.
        device: Where the images are wanted.
    """

    def __init__(self, config: DataConfig, device: torch.device) -> None:
        self._size = config.size
        self._device = device
        self._mean, self._std = (values.to(device)[:, None, None] for values in mean_std(config))

    def __call__(self, packed: PackedCrops) -> Tensor:
        """[B, C, *config.size], float32."""
        pixels = packed.pixels.to(self._device, non_blocking=True)
        images = [self._resized(pixels, crops) for crops in _groups(packed)]
        images = torch.cat(images)
        if pixels.dtype == torch.uint8:
            images.div_(255)
        return images.clamp_(0, 1).sub_(self._mean).div_(self._std)

    def _resized(self, pixels: Tensor, crops: Tensor) -> Tensor:
        count, channels = len(crops), pixels.shape[1]
        tall, wide = crops[:, 2:4].amax(dim=0).tolist()  # on the host, as `crops` is
        crops = crops.to(self._device, non_blocking=True)
        start, row, height, width, flip = crops[:, :, None, None].unbind(dim=1)  # each [B, 1, 1]
        # Beyond a crop its last pixels are repeated, of weight 0.
        down = torch.arange(tall, device=self._device)[:, None].minimum(height - 1)
        across = torch.arange(wide, device=self._device).minimum(width - 1)
        places = start + row * down + across  # [B, tall, wide]
        canvas = pixels.index_select(0, places.flatten()).float().view(count, tall, wide * channels)
        new_height, new_width = self._size
        weights = _weights(height, new_height, tall)
        rows = torch.bmm(weights, canvas).view(count, new_height, wide, channels)
        rows = rows.permute(0, 3, 1, 2).reshape(count, channels * new_height, wide)
        weights = _weights(width, new_width, wide)
        weights = torch.where(flip > 0, weights.flip(1), weights)
        return torch.bmm(rows, weights.transpose(1, 2)).view(count, channels, new_height, new_width)


def _groups(packed: PackedCrops) -> Iterator[Tensor]:
    """Neighbouring crops of which the largest height times the largest width stays within _CANVAS."""
    limit = max(1, _CANVAS // packed.pixels.shape[1])
    begin = tallest = widest = 0
    for place, (height, width) in enumerate(packed.crops[:, 2:4].tolist()):
        tallest, widest = max(tallest, height), max(widest, width)
        if place > begin and (place - begin + 1) * tallest * widest > limit:
            yield packed.crops[begin:place]
            begin, tallest, widest = place, height, width
    yield packed.crops[begin:]


def _weights(side: Tensor, size: int, longest: int) -> Tensor:
    """What each of `size` pixels takes of each of `longest`, of which `side` exist; [B, size, longest].

    Bicubic, stretched where the image shrinks, so that no pixel is missed.

    Args:
        side: [B, 1, 1], int64.
    """
    scale = side / size
    centres = scale * (torch.arange(size, device=side.device)[:, None] + 0.5)
    places = torch.arange(longest, device=side.device)
    weights = cubic((places + 0.5 - centres).abs() / scale.clamp(min=1)) * (places < side)
    return weights / weights.sum(dim=-1, keepdim=True)
