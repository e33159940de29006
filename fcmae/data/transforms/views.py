"""Several random views of each image, for the methods that compare them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from fcmae.config import DataConfig
from fcmae.data.transforms.crops import RandomView
from fcmae.data.transforms.standard import Transform, normalise
from fcmae.errors import InputError


class Views(NamedTuple):
    """The views of one image, or with one more dimension before the others those of a batch."""

    target: Tensor
    """[C, H, W]."""
    anchors: Tensor
    """Views like the target, [A, C, H, W]."""
    focal: Tensor
    """Small views of small crops, [F, C, h, w]."""


ViewTransform = Callable[[Tensor], Views]
"""float32 [C, H, W] in [0, 1] of any size -> normalised views."""


def multi_crop(
    config: DataConfig,
    *,
    anchors: int,
    focal_views: int,
    focal_size: int,
    focal_scale: tuple[float, float],
    color_jitter: float,
    blur: float,
    share_view: bool = False,
) -> ViewTransform:
    """Crops of one image, each flipped, coloured, blurred and normalised by draws of its own.

    Target and anchors are crops as in the other methods' pretraining, by `config.crop_scale`.

    Args:
        config: Size, channels, crop, flip and normalisation.
        anchors: Views like the target, A.
        focal_views: Small views, F.
        focal_size: Their side in pixels.
        focal_scale: Their area as a share of the image.
        color_jitter: Strength s: in four of five views brightness, contrast and saturation change by up to
            0.8 s, hue by 0.2 s; one of five is grey. 0 turns both off.
        blur: Probability of a Gaussian blur, sigma 0.1 to 2 pixels.
        share_view: The anchors are the target itself, an ablation of the paper that collapses.
    Raises:
        InputError: colour is to change in images of other than 3 channels, or views are wanted on the device.
    """
    if config.transform_on == "device":
        raise InputError(
            "data.transform_on: expected loader for several views, whose colours are made there, got device. "
            "Set --data.transform_on=loader."
        )
    if color_jitter and config.in_chans != 3:
        raise InputError(
            f"model.color_jitter: expected data.in_chans 3 (hue and saturation are those of RGB), got "
            f"{config.in_chans}. Set --model.color_jitter=0."
        )
    changes: list[Transform] = []
    if color_jitter:
        strong, weak = 0.8 * color_jitter, 0.2 * color_jitter
        changes.append(v2.RandomApply([v2.ColorJitter(strong, strong, strong, weak)], p=0.8))
        changes.append(v2.RandomGrayscale(p=0.2))
    if blur:
        # 13 pixels: three of the largest sigma on either side.
        changes.append(v2.RandomApply([v2.GaussianBlur(13, sigma=(0.1, 2.0))], p=blur))
    small = replace(config, image_size=focal_size, crop_scale=focal_scale)
    return _MultiCrop(
        view=v2.Compose([RandomView(config), *changes, normalise(config)]),
        focal_view=v2.Compose([RandomView(small), *changes, normalise(config)]),
        anchors=anchors,
        focal_views=focal_views,
        share_view=share_view,
    )


@dataclass(frozen=True, kw_only=True)
class _MultiCrop:
    view: Transform
    focal_view: Transform
    anchors: int
    focal_views: int
    share_view: bool

    def __call__(self, image: Tensor) -> Views:
        target = self.view(image)
        anchors = [target if self.share_view else self.view(image) for _ in range(self.anchors)]
        focal = [self.focal_view(image) for _ in range(self.focal_views)]
        # Without focal views, the batch still has a tensor there: of none.
        return Views(target, torch.stack(anchors), torch.stack(focal) if focal else target.new_empty(0))
