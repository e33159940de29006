"""From an image of any size to the network's input: random crops to train, a centre crop to evaluate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from fcmae.config import DataConfig, PixelConfig
from fcmae.data.transforms.crops import RandomCut, RandomView, resize
from fcmae.errors import InputError

Transform = Callable[[Tensor], Tensor]
"""[C, H, W] of any size, float32 in [0, 1] or uint8 -> normalised float32 [C, *config.size]."""

EVALUATION_ENLARGEMENT = 256 / 224
"""Size of the image that evaluation's centre crop is cut from, in crops: ImageNet's convention."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def mean_std(config: PixelConfig) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, [C] each, of pixels in [0, 1]."""
    colour = config.in_chans == 3
    mean = config.mean or (_IMAGENET_MEAN if colour else (0.5,) * config.in_chans)
    std = config.std or (_IMAGENET_STD if colour else (0.25,) * config.in_chans)
    return torch.tensor(mean), torch.tensor(std)


def denormalise(images: Tensor, config: PixelConfig) -> Tensor:
    """Pixels [..., C, H, W] in [0, 1] of normalised images; values outside are clipped."""
    mean, std = (values.to(images)[:, None, None] for values in mean_std(config))
    return (images * std + mean).clamp(0, 1)


def pretrain_transform(config: DataConfig) -> Callable[[Tensor], Any]:
    """Random resized crop (bicubic, antialiased), flip, normalisation; for the device, a `RandomCut`."""
    if config.transform_on == "device":
        return RandomCut(config)
    return v2.Compose([RandomView(config), normalise(config)])


def finetune_transform(
    config: DataConfig, *, rand_augment: str | None, random_erasing: float
) -> Callable[[Tensor], Any]:
    """As in pretraining, with RandAugment before the normalisation and random erasing (by noise) after it.

    Args:
        config: Size, channels, crop and flip.
        rand_augment: timm's description, such as `rand-m9-mstd0.5-inc1`; None: off.
        random_erasing: Probability of erasing a rectangle.
    Raises:
        InputError: RandAugment with other than 3 channels, or a description that timm refuses; or either of
            both augmentations, which work in the loader, with `transform_on` the device.
    """
    if config.transform_on == "device":
        if rand_augment is not None or random_erasing > 0:
            raise InputError(
                "data.transform_on: expected loader with train.rand_augment or train.random_erasing, which "
                "work there, got device. Set --data.transform_on=loader, or turn both off."
            )
        return RandomCut(config)
    steps: list[Transform] = [RandomView(config)]
    if rand_augment is not None:
        steps.append(_rand_augment(rand_augment, config))
    steps.append(normalise(config))
    if random_erasing > 0:
        steps.append(RandomErasing(random_erasing, mode="pixel", device="cpu"))
    return v2.Compose(steps)


def eval_transform(config: DataConfig) -> Transform:
    """Resizing to 256/224 of the crop's size at least, centre crop, normalisation."""
    return v2.Compose([_ResizeToCover(config), v2.CenterCrop(config.size), normalise(config)])


def normalise(config: PixelConfig) -> Transform:
    """Pixels in [0, 1] minus the mean, over the standard deviation: the last step."""
    mean, std = mean_std(config)
    return v2.Normalize(mean.tolist(), std.tolist())


@dataclass(frozen=True)
class _ResizeToCover:
    """Resizing that keeps the aspect and covers EVALUATION_ENLARGEMENT times the configuration's size."""

    config: DataConfig

    def __call__(self, image: Tensor) -> Tensor:
        sides = image.shape[-2:]
        pairs = list(zip(sides, self.config.size, strict=True))
        factor = max(EVALUATION_ENLARGEMENT * wanted / side for side, wanted in pairs)
        # Rounding must not leave a side shorter than the crop.
        height, width = (max(wanted, round(factor * side)) for side, wanted in pairs)
        return resize(image, (height, width), in_8_bits=self.config.resize_8_bit)


@dataclass(frozen=True)
class _OnPicture:
    """Applies a function of PIL pictures: timm's RandAugment knows nothing else."""

    function: Callable

    def __call__(self, image: Tensor) -> Tensor:
        picture = TF.to_pil_image(image)
        return TF.to_dtype(TF.pil_to_tensor(self.function(picture)), torch.float32, scale=True)


def _rand_augment(description: str, config: DataConfig) -> Transform:
    if config.in_chans != 3:
        raise InputError(
            f"train.rand_augment: expected data.in_chans 3 (RandAugment works on RGB pictures), "
            f"got {config.in_chans}. Set --train.rand_augment=null."
        )
    mean, _ = mean_std(config)
    # As timm sets them: shifts of up to 0.45 of the side; what moves in from outside has the mean colour.
    settings = {
        "translate_const": int(min(config.size) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean.tolist()),
    }
    try:
        augment = rand_augment_transform(description, settings)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"train.rand_augment: expected timm's form, such as rand-m9-mstd0.5-inc1, got {description!r}."
        ) from error
    for operation in augment.ops:
        if operation.aug_fn is timm_posterize:
            operation.aug_fn = _posterize
    return _OnPicture(augment)


def _posterize(picture: Image.Image, bits_to_keep: int, **options: object) -> Image.Image:
    """timm 1.0.31's strongest setting keeps 0 bits, all black, which Pillow refuses from version 13 on."""
    if bits_to_keep == 0:
        return Image.new(picture.mode, picture.size)
    return timm_posterize(picture, bits_to_keep, **options)
