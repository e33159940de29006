"""Crops and their resizing: torchvision's draws, and its numbers up to the rounding of float32."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from fcmae.config import DataConfig
from fcmae.data.transforms.crops import RandomCut, RandomView, resize

EPSILON = torch.finfo(torch.float32).eps


def noise(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    return torch.rand(shape, generator=generator)


def unit(image: Tensor, dtype: torch.dtype) -> Tensor:
    return image.to(dtype) / (255 if image.dtype == torch.uint8 else 1)


def torchvisions(image: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    pixels = unit(image, dtype)
    resized = TF.resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.clamp(0, 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize(
    "shape", [(50, 70), (500, 31), (64, 32), (32, 64), (33, 63), (1, 1), (1, 400), (7, 2), (97, 1000)]
)
def test_resizing_is_torchvisions(shape: tuple[int, int], channels: int, dtype: torch.dtype):
    image = noise(channels, *shape, dtype=dtype)
    size = (32, 64)
    truth = torchvisions(image, size, torch.float64)
    budget = 2 * (torchvisions(image, size, torch.float32) - truth).abs().max() + EPSILON
    before = image.clone()
    interleaved = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    wider = torch.cat([image, image], dim=2)
    for same in (image, interleaved, wider[:, :, : shape[1]]):
        out = resize(same, size, in_8_bits=False)
        assert out.is_contiguous() and out.dtype == torch.float32
        assert (out - truth).abs().max() <= budget
        out.zero_()
    assert torch.equal(image, before)  # its own memory


def test_resizing_in_8_bits_is_torchvisions_to_the_bit():
    image = noise(3, 50, 70, dtype=torch.uint8)
    expected = TF.resize(image, [32, 64], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(resize(image, (32, 64), in_8_bits=True), expected / 255)
    floats = image / 255  # floats have no 8 bits to stay in
    assert torch.equal(resize(floats, (32, 64), in_8_bits=True), resize(floats, (32, 64), in_8_bits=False))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_draws_are_those_of_torchvisions_two_transforms(size: tuple[int, int], flip: bool):
    config = DataConfig(source="digits", image_size=size, flip=flip, crop_scale=(0.1, 0.9))
    height, width = size
    steps: list = [
        v2.RandomResizedCrop(
            size,
            scale=(0.1, 0.9),
            ratio=(3 / 4 * width / height, 4 / 3 * width / height),
            interpolation=InterpolationMode.BICUBIC,
        ),
        lambda image: image.clamp(0, 1),
    ]
    theirs = v2.Compose([*steps, v2.RandomHorizontalFlip(0.5)] if flip else steps)
    image = noise(3, 60, 50, dtype=torch.float32)
    flips = set()
    for seed in range(20):

        def seeded(transform, image: Tensor = image, seed: int = seed):
            torch.manual_seed(seed)
            return transform(image)

        truth = seeded(lambda image: theirs(image.double()))
        budget = 2 * (seeded(theirs) - truth).abs().max() + EPSILON
        assert (seeded(RandomView(config)) - truth).abs().max() <= budget
        flips.add(seeded(RandomCut(config)).crop.flip)
        after = torch.rand(())
        seeded(theirs)
        assert torch.equal(torch.rand(()), after)  # and the next draw is the same again
    assert flips == ({True, False} if flip else {False})
