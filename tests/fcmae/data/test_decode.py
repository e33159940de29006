"""Values of every kind of image file, computed by hand from the pixels that were written."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.data import UnreadableImageError, decode_image
from fcmae.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def save(folder: Path, image: Image.Image, name: str, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def channels_first(array: np.ndarray, scale: float) -> torch.Tensor:
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32)) / scale


def assert_pixels(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32 and actual.is_contiguous()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.PPM"])
def test_rgb_is_exact(tmp_path: Path, name: str):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(tmp_path, Image.fromarray(RGB), name, **options)
    assert_pixels(decode_image(path, in_chans=3), channels_first(RGB, 255))


def test_grey_is_repeated_for_three_channels(tmp_path: Path):
    path = save(tmp_path, Image.fromarray(GREY), "a.png")
    grey = channels_first(GREY, 255)
    assert_pixels(decode_image(path, in_chans=1), grey)
    assert_pixels(decode_image(path, in_chans=3), torch.cat([grey] * 3))


def test_colour_becomes_grey_by_pils_luma(tmp_path: Path):
    path = save(tmp_path, Image.fromarray(RGB), "a.png")
    luma = channels_first(np.asarray(Image.fromarray(RGB).convert("L")), 255)
    grey = decode_image(path, in_chans=1)
    assert grey.shape == (1, 5, 7)
    assert (grey - luma).abs().max() <= 0.51 / 255  # PIL rounds to 8 bits


def test_one_bit_is_black_and_white(tmp_path: Path):
    bits = GREY > 127
    path = save(tmp_path, Image.fromarray(bits), "a.png")
    assert mode_of(path) == "1"
    assert_pixels(decode_image(path, in_chans=1), channels_first(bits, 1))


def test_palette_gives_its_colours(tmp_path: Path):
    image = Image.fromarray(RGB).quantize(8)
    path = save(tmp_path, image, "a.png")
    assert mode_of(path) == "P"
    assert_pixels(decode_image(path, in_chans=3), channels_first(np.asarray(image.convert("RGB")), 255))


def test_cmyk_becomes_rgb(tmp_path: Path):
    path = save(tmp_path, Image.new("CMYK", (4, 3), (255, 0, 0, 0)), "a.tif")  # cyan ink: no red
    expected = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1).expand(3, 3, 4)
    assert torch.equal(decode_image(path, in_chans=3), expected)


def test_sixteen_bit_grey_keeps_every_level(tmp_path: Path):
    for name in ("a.png", "a.tif"):
        path = save(tmp_path, Image.fromarray(DEEP), name)
        assert mode_of(path).startswith("I")
        assert_pixels(decode_image(path, in_chans=1), channels_first(DEEP, 65535))


def test_thirty_two_bit_tiff_is_read_as_sixteen_or_refused(tmp_path: Path):
    path = save(tmp_path, Image.fromarray(DEEP.astype(np.int32)), "a.tif")
    assert_pixels(decode_image(path, in_chans=1), channels_first(DEEP, 65535))
    path = save(tmp_path, Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), "b.tif")
    with pytest.raises(UnreadableImageError, match="16 bits, got values from 70000"):
        decode_image(path, in_chans=1)


def test_float_tiff_is_taken_as_it_is(tmp_path: Path):
    values = (DEEP / 65535).astype(np.float32)
    path = save(tmp_path, Image.fromarray(values), "a.tif")
    assert_pixels(decode_image(path, in_chans=1), channels_first(values, 1))


def test_alpha_is_kept_or_laid_on_white(tmp_path: Path):
    rgba = np.concatenate([RGB, GREY[..., None]], axis=2)
    rgba[0, 0], rgba[0, 1] = (9, 9, 9, 0), (9, 9, 9, 255)
    path = save(tmp_path, Image.fromarray(rgba), "a.png")
    pixels = channels_first(rgba, 255)
    assert_pixels(decode_image(path, in_chans=4), pixels)

    on_white = decode_image(path, in_chans=3)
    assert torch.equal(on_white[:, 0, 0], torch.ones(3)) and torch.equal(on_white[:, 0, 1], pixels[:3, 0, 1])
    white = Image.new("RGBA", (7, 5), "white")
    expected = channels_first(np.asarray(Image.alpha_composite(white, Image.fromarray(rgba)))[..., :3], 255)
    assert (on_white - expected).abs().max() <= 1.01 / 255  # PIL rounds to 8 bits


def test_grey_alpha_and_transparent_palette(tmp_path: Path):
    grey_alpha = np.stack([GREY, np.zeros_like(GREY)], axis=2)
    path = save(tmp_path, Image.fromarray(grey_alpha, "LA"), "a.png")
    assert_pixels(decode_image(path, in_chans=2), channels_first(grey_alpha, 255))
    assert torch.equal(decode_image(path, in_chans=3), torch.ones(3, 5, 7))

    path = save(tmp_path, Image.new("P", (7, 5), 0), "b.png", transparency=0)
    assert torch.equal(decode_image(path, in_chans=3), torch.ones(3, 5, 7))


def test_exif_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = save(tmp_path, Image.fromarray(RGB), "a.png", exif=exif)
    assert_pixels(decode_image(path, in_chans=3), channels_first(np.rot90(RGB, -1), 255))


def test_first_frame_of_an_animation(tmp_path: Path):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    path = save(tmp_path, first, "a.gif", save_all=True, append_images=[second])
    # A GIF's greys are palette colours, so they pass through the luma.
    assert torch.allclose(decode_image(path, in_chans=1), channels_first(GREY, 255))


def test_pages_of_a_tiff_are_channels(tmp_path: Path):
    pages = RNG.integers(0, 65536, (12, 5, 7), dtype=np.uint16)
    images = [Image.fromarray(page) for page in pages]
    path = save(tmp_path, images[0], "a.tif", save_all=True, append_images=images[1:])
    assert_pixels(decode_image(path, in_chans=12), channels_first(pages.transpose(1, 2, 0), 65535))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("uint8", 255), (">u2", 65535), ("uint16", 65535), ("int16", 32767), ("float32", 1), ("float64", 1)],
)
def test_npy_types(tmp_path: Path, dtype: str, scale: int):
    tile = RNG.random((6, 5, 12)) * scale
    tile = tile.astype(dtype)
    np.save(tmp_path / "a.npy", tile)
    assert_pixels(decode_image(tmp_path / "a.npy", in_chans=12), channels_first(tile, scale))


def test_npy_layouts(tmp_path: Path):
    def shape_of(shape: tuple[int, ...], in_chans: int) -> tuple[int, ...]:
        np.save(tmp_path / "a.npy", np.zeros(shape, dtype=np.uint8))
        return tuple(decode_image(tmp_path / "a.npy", in_chans=in_chans).shape)

    assert shape_of((5, 7), 1) == (1, 5, 7)
    assert shape_of((5, 7), 3) == (3, 5, 7)
    assert shape_of((5, 7, 12), 12) == (12, 5, 7)
    assert shape_of((12, 5, 7), 12) == (12, 5, 7)
    assert shape_of((200, 64, 60), 200) == (200, 64, 60)  # in_chans decides, not the shorter axis
    assert shape_of((12, 7, 12), 12) == (12, 12, 7)  # a tie: the last axis
    assert shape_of((9, 8, 1), 3) == (3, 9, 8)
    assert shape_of((3, 9, 8), 1) == (1, 9, 8)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[0.5, np.nan]]), "expected floats in \\[0, 1\\], got values from nan to nan"),
        (np.array([[0.5, 1.5]]), "got values from 0.5 to 1.5"),
        (np.array([[-0.1, 0.5]]), "got values from -0.1"),
        (np.zeros((4, 4), dtype=np.int32), "expected uint8, uint16, int16 or float in \\[0, 1\\], got int32"),
        (np.full((4, 4), -1, dtype=np.int16), "expected int16 values of 0 or more, got -1"),
        (np.zeros((2, 2, 2, 2), dtype=np.uint8), "got shape \\(2, 2, 2, 2\\)"),
        (np.zeros((0, 4), dtype=np.uint8), "expected pixels, got shape"),
        (np.array([[{}]], dtype=object), "allow_pickle"),
    ],
)
def test_npy_refusals(tmp_path: Path, array: np.ndarray, reason: str):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(tmp_path / "a.npy", in_chans=1)


def test_damaged_files_are_named_with_one_line(tmp_path: Path):
    whole = save(tmp_path, Image.fromarray(np.tile(RGB, (20, 20, 1))), "whole.jpg").read_bytes()
    damaged = {
        "truncated.jpg": whole[: len(whole) // 2],
        "header.jpg": whole[:20],
        "empty.png": b"",
        "text.png": b"not an image",
        "text.npy": b"not an array",
    }
    for name, content in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError) as caught:
            decode_image(path, in_chans=3)
        assert caught.value.name == str(path) and caught.value.reason
        assert str(caught.value) == f"{path}: {caught.value.reason}" and "\n" not in str(caught.value)
    with pytest.raises(UnreadableImageError, match="No such file"):
        decode_image(tmp_path / "gone.png", in_chans=3)


def test_unreadable_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "truncated")))
    assert (error.name, error.reason, str(error)) == ("a.png", "truncated", "a.png: truncated")


@pytest.mark.parametrize(("mode", "have", "want"), [("RGB", 3, 12), ("RGB", 3, 4), ("L", 1, 4)])
def test_other_channel_counts_are_refused(tmp_path: Path, mode: str, have: int, want: int):
    path = save(tmp_path, Image.new(mode, (4, 4)), "a.png")
    with pytest.raises(InputError, match=f"expected images of {want} channels, got {have} in .*a.png"):
        decode_image(path, in_chans=want)


def test_large_jpegs_are_decoded_at_a_fraction(tmp_path: Path):
    ramp = np.linspace(0, 255, 800, dtype=np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (600, 800, 3)).copy())
    path = save(tmp_path, picture, "a.jpg", quality=95)
    full = decode_image(path, in_chans=3)
    assert full.shape == (3, 600, 800)
    assert decode_image(path, in_chans=3, min_side=301).shape == (3, 600, 800)
    quarter = decode_image(path, in_chans=3, min_side=150)
    assert quarter.shape == (3, 150, 200)
    means = full.unfold(1, 4, 4).unfold(2, 4, 4).mean(dim=(3, 4))
    assert (quarter - means).abs().max() < 0.02
