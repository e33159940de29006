"""Multi-crop views: shapes, draws, batches, bad images, and what is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fcmae.config import DataConfig
from fcmae.data import Views, multi_crop, open_dataset, training_batches
from fcmae.errors import InputError

DATA = DataConfig(source="digits", image_size=(32, 48), workers=0, crop_scale=(0.3, 1.0))
OPTIONS = {
    "anchors": 2,
    "focal_views": 3,
    "focal_size": 16,
    "focal_scale": (0.05, 0.3),
    "color_jitter": 0.5,
    "blur": 0.5,
}


def digits(**data) -> tuple[DataConfig, list]:
    config = DataConfig(**{**vars(DATA), **data})
    dataset = open_dataset(config, split="all", labelled=False)
    return config, [dataset.load(index) for index in range(4)]


def make(config: DataConfig, **options):
    return multi_crop(config, **{**OPTIONS, **options})


@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_shapes(in_chans: int):
    config, images = digits(in_chans=in_chans)
    views = make(config, color_jitter=0.5 if in_chans == 3 else 0.0)(images[0])
    assert [tuple(view.shape) for view in views] == [
        (in_chans, 32, 48),
        (2, in_chans, 32, 48),
        (3, in_chans, 16, 16),
    ]
    assert all(view.dtype == torch.float32 and view.isfinite().all() for view in views)


def test_every_view_is_a_draw_of_its_own():
    config, images = digits()
    views = make(config)(images[0])
    for view in (torch.cat([views.target[None], views.anchors]), views.focal):
        pairs = torch.combinations(torch.arange(len(view)))
        assert all(not torch.equal(view[first], view[second]) for first, second in pairs.tolist())


def test_plain_views_are_crops_of_their_share():
    # A ramp from 0 to 1 along y: the height of a crop is the range of what it shows.
    config, _ = digits(mean=(0.0,) * 3, std=(1.0,) * 3, crop_ratio=(1.0, 1.0), image_size=32)
    ramp = torch.linspace(0, 1, 320)[:, None].expand(3, 320, 320)
    views = make(config, color_jitter=0.0, blur=0.0, anchors=20, focal_views=20)(ramp)
    spans = {
        name: (view.amax(dim=(1, 2, 3)) - view.amin(dim=(1, 2, 3)))
        for name, view in (("anchors", views.anchors), ("focal", views.focal))
    }
    assert spans["anchors"].min() > 0.3**0.5 - 0.05 and spans["anchors"].max() <= 1
    assert spans["focal"].min() < spans["focal"].max() < 0.3**0.5 + 0.01
    assert views.anchors.std(dim=3).max() < 1e-6  # neither colours nor a blur that leaks from the sides


def test_colours_and_blur_change_when_asked_to():
    config, images = digits(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False, image_size=32)
    same = {"anchors": 8, "focal_views": 0}
    plain = make(config, color_jitter=0.0, blur=0.0, **same)(images[0]).anchors
    assert (plain == plain[0]).all()
    blurred = make(config, color_jitter=0.0, blur=1.0, **same)(images[0]).anchors
    contrast = blurred.std(dim=(1, 2, 3)) / plain[0].std()
    assert contrast.max() < 1 + 1e-5 and contrast.min() < 0.95 and len(set(contrast.tolist())) > 4
    coloured = make(config, color_jitter=1.0, blur=0.0, **same)(images[0]).anchors
    assert sum(not torch.equal(view, plain[0]) for view in coloured) >= 4


def test_shared_view_and_no_focal_views():
    config, images = digits()
    views = make(config, share_view=True, focal_views=0)(images[0])
    assert (views.anchors == views.target).all() and views.focal.shape == (0,)


def test_batches_are_the_same_with_workers_and_from_any_start():
    config, _ = digits()
    dataset = open_dataset(config, split="all", labelled=False)

    def batches(start: int, workers: int) -> list[Views]:
        made = training_batches(
            dataset, make(config), batch_size=2, seed=3, start=start, stop=4, workers=workers
        )
        kept = list(made)
        assert all(batch.size == 2 for batch in kept)
        return [batch.images for batch in kept]

    whole, late = batches(0, 0), batches(2, 2)
    assert isinstance(whole[0], Views) and whole[0].anchors.shape == (2, 2, 3, 32, 48)
    for left, right in zip(whole[2:], late, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(left, right, strict=True))
    assert not torch.equal(whole[0].target, whole[1].target)


def test_an_unreadable_image_is_replaced(tmp_path: Path):
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    config = DataConfig(root=str(tmp_path), image_size=32, workers=0)
    dataset = open_dataset(config, split="all", labelled=False)
    (batch,) = training_batches(dataset, make(config), batch_size=3, seed=0, stop=1, workers=0)
    assert batch.size == 3 and [line.partition(": ")[0] for line in batch.bad] == [str(tmp_path / "1.png")]


def test_colours_of_other_than_three_channels_are_refused():
    config, _ = digits(in_chans=1)
    with pytest.raises(InputError, match=r"model\.color_jitter: expected data\.in_chans 3 .* got 1\. Set"):
        make(config)
