"""Crops, normalisation and augmentation: shapes, ranges and meanings."""

import pickle
import random

import numpy as np
import pytest
import torch

from fcmae.config import DataConfig
from fcmae.data import denormalise, eval_transform, finetune_transform, mean_std, pretrain_transform
from fcmae.errors import InputError


def config(**options) -> DataConfig:
    return DataConfig(source="digits", **options)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


IMAGE = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0))


def test_mean_and_std():
    mean, std = mean_std(config())
    assert torch.allclose(mean, torch.tensor([0.485, 0.456, 0.406]))
    assert torch.allclose(std, torch.tensor([0.229, 0.224, 0.225]))
    mean, std = mean_std(config(in_chans=12))
    assert torch.equal(mean, torch.full((12,), 0.5)) and torch.equal(std, torch.full((12,), 0.25))
    mean, std = mean_std(config(in_chans=1, mean=(0.0,), std=(0.1,)))
    assert (mean.item(), std.item()) == (0.0, pytest.approx(0.1))


def test_denormalise_inverts_and_clips():
    settings = config(image_size=(50, 70))
    mean, std = (values[:, None, None] for values in mean_std(settings))
    batch = ((IMAGE - mean) / std)[None]
    assert torch.allclose(denormalise(batch, settings)[0], IMAGE, atol=1e-6)
    assert denormalise(batch + 100, settings).max() == 1


def transforms(settings: DataConfig):
    return [
        pretrain_transform(settings),
        finetune_transform(settings, rand_augment=None, random_erasing=0.5),
        eval_transform(settings),
    ]


@pytest.mark.parametrize("shape", [(50, 70), (9, 200), (300, 40), (1, 1)])
@pytest.mark.parametrize("in_chans", [1, 3, 12])
def test_any_size_becomes_the_networks(shape: tuple[int, int], in_chans: int):
    settings = config(image_size=(32, 64), in_chans=in_chans)
    image = torch.rand(in_chans, *shape)
    before = image.clone()
    for transform in transforms(settings):
        out = pickle.loads(pickle.dumps(transform))(image)
        assert out.shape == (in_chans, 32, 64) and out.dtype == torch.float32
    assert torch.equal(image, before)


def test_pixels_stay_in_range_before_normalisation():
    step = torch.zeros(1, 40, 40)
    step[:, :, 20:] = 1  # bicubic overshoots at the edge
    settings = config(image_size=64, in_chans=1, mean=(0.0,), std=(1.0,))
    for transform in (pretrain_transform(settings), eval_transform(settings)):
        out = transform(step)
        assert out.min() >= 0 and out.max() <= 1
    assert out.min() == 0 and out.max() == 1  # the whole image, its edge included


def test_crop_ratio_is_relative_to_the_targets_aspect():
    # One value per column: the crop's width shows as the range of the columns.
    settings = config(
        image_size=(16, 64), in_chans=1, crop_scale=(0.25, 0.25), crop_ratio=(1, 1), mean=(0,), std=(1,)
    )
    columns = torch.linspace(0, 1, 400).expand(1, 100, 400).contiguous()
    out = pretrain_transform(settings)(columns)
    # A quarter of the area at the image's own aspect 4:1 is half the width.
    assert (out.max() - out.min()).item() == pytest.approx(0.5, abs=0.02)


def test_flip_follows_the_config():
    ramp = torch.linspace(0, 1, 32).expand(1, 32, 32).contiguous()

    def rising(flip: bool) -> set[bool]:
        settings = config(image_size=16, in_chans=1, flip=flip)
        transform = pretrain_transform(settings)
        seed_all(0)
        return {bool(out[0, 0, -1] > out[0, 0, 0]) for out in (transform(ramp) for _ in range(20))}

    assert rising(True) == {True, False}
    assert rising(False) == {True}


def test_evaluation_resizes_to_eight_sevenths_and_cuts_the_centre():
    columns = torch.linspace(0, 1, 448).expand(1, 224, 448).contiguous()
    settings = config(image_size=224, in_chans=1, mean=(0,), std=(1,))
    out = eval_transform(settings)(columns)
    # 224x448 becomes 256x512, of which columns 144 to 368 stay: 0.28 to 0.72 of the width.
    assert out[0, 0, 0].item() == pytest.approx(144 / 512, abs=0.01)
    assert out[0, 0, -1].item() == pytest.approx(368 / 512, abs=0.01)
    assert torch.equal(out, eval_transform(settings)(columns))


def test_rand_augment_changes_pixels_and_is_seeded():
    settings = config(image_size=32, crop_scale=(1, 1), crop_ratio=(1, 1), flip=False)
    plain = finetune_transform(settings, rand_augment=None, random_erasing=0.0)
    augmented = finetune_transform(settings, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.0)
    image = IMAGE[:, :50, :50]
    changed = 0
    for seed in range(100):  # all of timm's operations, each without a warning
        seed_all(seed)
        first = augmented(image)
        seed_all(seed)
        assert torch.equal(augmented(image), first)
        seed_all(seed)
        changed += (first - plain(image)).abs().max().item() > 0.1
    assert changed > 50


def test_posterising_to_no_bits_is_black():
    # timm asks for 0 bits at full strength, and Pillow 13 refuses them.
    settings = config(image_size=32, crop_scale=(1, 1), mean=(0,) * 3, std=(1,) * 3)
    transform = finetune_transform(settings, rand_augment="rand-m10-n20-inc1", random_erasing=0.0)
    augment = transform.transforms[-2].function
    augment.ops = [op for op in augment.ops if op.name == "PosterizeIncreasing"]
    seed_all(0)
    assert torch.equal(transform(IMAGE), torch.zeros(3, 32, 32))


def test_random_erasing_replaces_a_rectangle():
    settings = config(image_size=32, crop_scale=(1, 1), crop_ratio=(1, 1), flip=False)
    flat = torch.full((3, 32, 32), 0.5)
    seed_all(0)
    erased = finetune_transform(settings, rand_augment=None, random_erasing=1.0)(flat)
    changed = (erased != erased[:, :1, :1]).any(dim=0)
    assert 0.01 < changed.float().mean() < 0.4


def test_rand_augment_mistakes():
    with pytest.raises(InputError, match=r"train\.rand_augment: expected data\.in_chans 3 .* got 12"):
        finetune_transform(config(in_chans=12), rand_augment="rand-m9", random_erasing=0)
    for description in ("augment", "rand-q9"):
        with pytest.raises(InputError, match=f"such as rand-m9-mstd0.5-inc1, got '{description}'"):
            finetune_transform(config(), rand_augment=description, random_erasing=0)


def test_images_in_8_bits_become_what_floats_become_but_for_rounding():
    floats_of, rounded_of = config(image_size=32), config(image_size=32, resize_8_bit=True)
    # Of a range in which bicubic interpolation overshoots neither 0 nor 255 between its two passes.
    stored = (80 + IMAGE * 100).to(torch.uint8)
    for make in (pretrain_transform, eval_transform):
        seed_all(1)
        floats = make(floats_of)(stored)
        seed_all(1)
        rounded = make(rounded_of)(stored)
        assert rounded.dtype == torch.float32
        # Each pass rounds by at most half a step, which the second may enlarge; the smallest std is 0.224.
        assert 0 < (floats - rounded).abs().max() <= 1.5 / 255 / 0.224


def test_all_of_an_8_bit_image_is_its_bytes():
    settings = config(image_size=(50, 70), crop_scale=(1, 1), crop_ratio=(1, 1), flip=False)
    stored = (IMAGE * 255).round().to(torch.uint8)
    transform = pretrain_transform(settings)
    assert torch.equal(transform(stored), transform(stored.float() / 255))
