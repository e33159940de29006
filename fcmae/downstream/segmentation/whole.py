"""A whole image segmented: by windows, at several scales, mirrored as well."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from fcmae.config import SegmentDataConfig, SegmentTestConfig
from fcmae.downstream.pixels import normalised
from fcmae.downstream.segmentation.transforms import fitting_scale

Logits = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] to logits [B, K, H, W]."""


@torch.no_grad()
def class_probabilities(
    logits_of: Logits, image: Tensor, *, data: SegmentDataConfig, test: SegmentTestConfig
) -> Tensor:
    """The probability of every class at every pixel of an image.

    At each scale the logits of overlapping windows are averaged, enlarged to the image and made into
    probabilities; these are averaged over the scales and the mirrored images, as in mmsegmentation.

    Args:
        logits_of: The network in evaluation mode.
        image: [C, H, W], uint8 or float32 in [0, 1], on the network's device.
        data: Mean and deviation, the size at scale 1, and the size of windows.
        test: Windows, scales and mirrors.
    Returns:
        [K, H, W], float32.
    """
    size = (image.shape[1], image.shape[2])
    total: Tensor | None = None
    for scale in test.scales:
        factor = scale * fitting_scale(size, data.resize)
        scaled = [max(1, round(side * factor)) for side in size]
        resized = normalised(TF.resize(image, scaled, InterpolationMode.BILINEAR, antialias=True), data)
        for mirrored in (False, True) if test.flip else (False,):
            logits = _by_windows(logits_of, resized.flip(-1) if mirrored else resized, data, test)
            logits = logits.flip(-1) if mirrored else logits
            logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
            probabilities = logits.softmax(dim=0)
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.div_(len(test.scales) * (2 if test.flip else 1))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side: every `stride` pixels, the last one at the edge."""
    last = max(0, side - window)
    return [*range(0, last, stride), last]


def _by_windows(logits_of: Logits, image: Tensor, data: SegmentDataConfig, test: SegmentTestConfig) -> Tensor:
    """Logits [K, H, W] of an image [C, H, W], the mean over the windows that cover each pixel."""
    size = (image.shape[1], image.shape[2])
    given = data.size if test.window is None else _pair(test.window or size)
    window = (min(given[0], size[0]), min(given[1], size[1]))
    stride = _pair(test.stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3)))
    rows, columns = (window_starts(*sides) for sides in zip(size, window, stride, strict=True))
    total: Tensor | None = None
    counts = image.new_zeros(size)
    for places in _batches([(y, x) for y in rows for x in columns], test.batch_size):
        crops = torch.stack([image[:, y : y + window[0], x : x + window[1]] for y, x in places])
        for (y, x), logits in zip(places, logits_of(crops).float(), strict=True):
            if total is None:
                total = logits.new_zeros(len(logits), *size)
            total[:, y : y + window[0], x : x + window[1]] += logits
            counts[y : y + window[0], x : x + window[1]] += 1
    assert total is not None
    return total / counts


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _batches(places: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for first in range(0, len(places), size):
        yield places[first : first + size]
