"""Crops made on the device: the loader's images, seeds and places, from the bytes of the crops alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fcmae.config import DataConfig
from fcmae.data import (
    Batch,
    finetune_transform,
    mean_std,
    multi_crop,
    open_dataset,
    pretrain_transform,
    training_batches,
)
from fcmae.data.transforms import on_device
from fcmae.data.transforms.crops import Crop, Cut
from fcmae.data.transforms.on_device import DeviceCrops, PackedCrops, pack
from fcmae.errors import InputError

CPU = torch.device("cpu")
EPSILON = torch.finfo(torch.float32).eps


def digits(**options) -> DataConfig:
    return DataConfig(source="digits", **options)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def seeded(seed: int, transform: Callable, image: Tensor):
    torch.manual_seed(seed)
    return transform(image)


def budget(config: DataConfig, longest: int) -> Tensor:
    """[C, 1, 1]: the rounding by which two sums of the same weighted pixels may differ, in normalised values.

    A sum of K products of float32 is off by at most K times half an epsilon times the sum of their sizes.
    There are three on the way (the weights' own, rows, columns), made twice; the weights' sizes add to 1.3.

    Args:
        longest: Of the images' sides.
    """
    taps = 2 * math.ceil(2 * max(1.0, longest / min(config.size))) + 1
    return 2 * 3 * taps * EPSILON / 2 * 1.3 / mean_std(config)[1][:, None, None]


@pytest.mark.parametrize("kind", ["bytes", "floats", "both"])
@pytest.mark.parametrize("in_chans", [1, 3, 12])
def test_images_are_the_loaders(in_chans: int, kind: str, monkeypatch):
    monkeypatch.setattr(on_device, "_CANVAS", in_chans * 64 * 300)  # several canvases for a batch
    config = digits(image_size=(32, 64), in_chans=in_chans, crop_scale=(0.05, 1.0))
    shapes = [(50, 70), (300, 40), (9, 200), (1, 1), (64, 64), (200, 300)] * 2
    images = [noise(in_chans, *shape) for shape in shapes]
    if kind != "bytes":
        images[1::2] = [image / 255 for image in images[1::2]]
    if kind == "floats":
        images[::2] = [image / 255 for image in images[::2]]
    on_loader = pretrain_transform(config)
    to_cut = pretrain_transform(replace(config, transform_on="device"))
    cuts = [seeded(seed, to_cut, image) for seed, image in enumerate(images)]
    assert {cut.crop.flip for cut in cuts} == {True, False}
    packed = pack(cuts)
    assert packed.pixels.dtype == (torch.uint8 if kind == "bytes" else torch.float32)
    made = DeviceCrops(config, CPU)(packed)
    expected = torch.stack([seeded(seed, on_loader, image) for seed, image in enumerate(images)])
    assert made.shape == (12, in_chans, 32, 64) and made.is_contiguous()
    assert ((made - expected).abs() <= budget(config, 300)).all()


def test_only_what_crops_need_is_sent_and_once():
    first, second = torch.arange(3 * 20 * 30).view(3, 20, 30).byte(), noise(3, 10, 10)
    crops = [Crop(2, 3, 5, 7, True), Crop(4, 8, 10, 20, False), Crop(1, 1, 2, 2, False)]
    packed = pack([Cut(first, crops[0]), Cut(first, crops[1]), Cut(second, crops[2])])
    # Rows 2 to 13 and columns 3 to 27 of the first image hold both of its crops.
    assert packed.pixels.shape == (12 * 25 + 2 * 2, 3)
    assert packed.crops.tolist() == [[0, 25, 5, 7, 1], [2 * 25 + 5, 25, 10, 20, 0], [12 * 25, 2, 2, 2, 0]]
    assert torch.equal(packed.pixels[:300], first[:, 2:14, 3:28].permute(1, 2, 0).reshape(300, 3))
    assert torch.equal(packed.pixels[300:], second[:, 1:3, 1:3].permute(1, 2, 0).reshape(4, 3))


def test_a_whole_image_of_the_networks_size_is_its_bytes():
    config = digits(image_size=(50, 70), mean=(0,) * 3, std=(1,) * 3)
    image = noise(3, 50, 70)
    packed = pack([Cut(image, Crop(0, 0, 50, 70, flip)) for flip in (False, True)])
    plain, mirrored = DeviceCrops(config, CPU)(packed)
    assert torch.equal(plain, image / 255) and torch.equal(mirrored, image.flip(-1) / 255)


def test_canvases_are_bounded_and_every_crop_lies_on_one(monkeypatch):
    monkeypatch.setattr(on_device, "_CANVAS", 3000)
    sides = [(10, 10), (20, 5), (90, 90), (1, 1), (4, 250), (250, 4), (10, 50), (10, 50)]
    crops = torch.tensor([(0, 0, height, width, 0) for height, width in sides])
    groups = list(on_device._groups(PackedCrops(crops, torch.empty(0, 3))))
    assert torch.equal(torch.cat(groups), crops)
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1, 2]  # one alone may be larger
    for group in groups:
        tall, wide = group[:, 2:4].amax(dim=0).tolist()
        assert len(group) == 1 or len(group) * tall * wide * 3 <= 3000


def test_nothing_waits_for_the_device():
    # The meta device has no values: reading one raises.
    cuts = [Cut(noise(3, 40, 30), Crop(0, 0, 40, 30, True)), Cut(noise(3, 9, 9), Crop(1, 1, 5, 8, False))]
    out = DeviceCrops(digits(image_size=32), torch.device("meta"))(pack(cuts))
    assert out.shape == (2, 3, 32, 32) and out.device.type == "meta"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """JPEGs and PNGs of several sizes, one of 16 bits and one damaged."""
    generator = np.random.default_rng(0)
    for number in range(9):
        height, width = generator.integers(40, 120, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.{'png' if number % 2 else 'jpg'}")
    np.save(tmp_path / "deep.npy", generator.integers(0, 65536, (60, 70, 3), dtype=np.uint16))
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


def batches_of(folder: Path, transform_on: Literal["loader", "device"], **options) -> list[Batch]:
    config = DataConfig(root=str(folder), image_size=32, transform_on=transform_on)
    dataset = open_dataset(config, split="all", labelled=False)
    given = {"batch_size": 4, "seed": 5, "stop": 6, "workers": 0, **options}
    return list(training_batches(dataset, pretrain_transform(config), **given))


@pytest.mark.parametrize("repeats", [1, 2])
def test_batches_are_the_loaders(folder: Path, repeats: int):
    on_loader = batches_of(folder, "loader", repeats=repeats)
    on_device = batches_of(folder, "device", repeats=repeats, workers=2)
    for one, other in zip(on_loader, on_device, strict=True):
        allowed = budget(DataConfig(root=str(folder), image_size=32), 120)
        assert ((other.images - one.images).abs() <= allowed).all()
        assert one.bad == other.bad and one.size == other.size == 4
    assert any(batch.bad for batch in on_device)


def test_repeats_of_an_image_are_sent_once(folder: Path):
    (folder / "broken.png").unlink()
    config = DataConfig(root=str(folder), image_size=32, crop_scale=(1, 1), transform_on="device")
    dataset = open_dataset(config, split="all", labelled=False)
    cut = pretrain_transform(config).__call__  # the loader does not know it: its half stays visible
    (batch,) = training_batches(dataset, cut, batch_size=20, repeats=2, seed=0, stop=1, workers=0)
    assert isinstance(batch.images, PackedCrops) and batch.size == 20
    areas = [dataset.load(index).shape[1:].numel() for index in range(10)]
    assert len(batch.images.pixels) <= sum(areas)


def test_a_restart_and_other_processes_take_the_same_crops(folder: Path):
    whole = batches_of(folder, "device", repeats=2)
    resumed = batches_of(folder, "device", repeats=2, start=3, workers=1)
    assert all(torch.equal(one.images, other.images) for one, other in zip(whole[3:], resumed, strict=True))
    halves = [
        batches_of(folder, "device", batch_size=2, repeats=2, rank=rank, world_size=2) for rank in range(2)
    ]
    allowed = budget(DataConfig(root=str(folder), image_size=32), 120)
    for number, batch in enumerate(whole):
        parts = torch.cat([half[number].images for half in halves])
        assert ((parts - batch.images).abs() <= allowed).all()


def test_what_works_in_the_loader_alone_is_refused():
    config = digits(transform_on="device")
    views = {"anchors": 1, "focal_views": 0, "focal_size": 32, "focal_scale": (0.1, 0.2)}
    with pytest.raises(InputError, match=r"data\.transform_on: expected loader for several views.* device"):
        multi_crop(config, **views, color_jitter=0, blur=0)
    for rand_augment, random_erasing in (("rand-m9", 0), (None, 1)):
        with pytest.raises(InputError, match=r"data\.transform_on: expected loader with train\.rand_augment"):
            finetune_transform(config, rand_augment=rand_augment, random_erasing=random_erasing)
    assert isinstance(finetune_transform(config, rand_augment=None, random_erasing=0)(noise(3, 9, 9)), Cut)
    with pytest.raises(InputError, match=r"data\.resize_8_bit: expected false with data\.transform_on"):
        digits(transform_on="device", resize_8_bit=True)
