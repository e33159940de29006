"""One image file as a tensor, whatever its mode: the value range and the channels are decided here."""

import io
import math
import os
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor

from fcmae.errors import InputError

IMAGE_EXTENSIONS = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".npy",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""Endings, in lower case, of the files that count as images."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, the weights of PIL's mode "L"
_GREY_MODES = ("1", "L", "LA", "La")
RAW_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes of one channel that PIL's convert would clip to 8 bits."""


class UnreadableImageError(Exception):
    """One image that cannot be decoded: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode_image(
    path: str | os.PathLike[str],
    *,
    in_chans: int,
    min_side: int | None = None,
    content: bytes | None = None,
    keep_8_bit: bool = False,
) -> Tensor:
    """Pixels of one image file, in [0, 1] or in bytes.

    The file's type decides the scale, never its content: 1 and 8 bits are divided by their largest value,
    16 bits by 65535 (a `.npy` with a sign by 32767), floats are taken as they are. PIL reads colour of
    16 bits a channel at 8 bits; a `.npy` keeps all of them.

    Transparency: with `in_chans` 4 (2 for grey) the alpha channel is kept; otherwise the image is laid on
    white, because the colours below transparent pixels are arbitrary. Palette and CMYK become RGB. Grey
    becomes 3 channels by repetition, 3 channels become grey by ITU-R 601 luma. EXIF orientation is applied,
    and of an animation the first frame is read.

    More channels: a TIFF of `in_chans` pages of one channel, or a `.npy` of shape [H, W], [H, W, C] or
    [C, H, W]; its channel axis is the one of length `in_chans`, else the shorter one, and the last in a tie.

    Args:
        path: The file; its ending decides between `.npy` and PIL.
        in_chans: Channels of the result.
        min_side: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, several times faster, as long as its
            shorter side keeps this many pixels. None: always full size.
        content: The file's bytes, of an image inside another file, which `path` then only names. None: they
            are read from `path`.
        keep_8_bit: Return what is stored in 8 bits as it is, uint8 with 255 for 1, unless it must be computed
            with: laid on white, or made grey.
    Returns:
        [in_chans, H, W], float32, contiguous; with `keep_8_bit` also uint8, of any strides.
    Raises:
        UnreadableImageError: truncated, not an image, or values outside [0, 1], NaN among them.
        InputError: the file's channels cannot become `in_chans`.
    """
    name = os.fspath(path)
    file = name if content is None else io.BytesIO(content)
    try:
        if name.lower().endswith(".npy"):
            pixels = _read_array(file, in_chans)
        else:
            pixels = _read_picture(file, in_chans, min_side)
    # PIL meets a damaged file with almost any exception: OSError, SyntaxError, struct.error, IndexError ...
    except Exception as error:
        message = str(error)
        if content is not None:  # PIL would name their place in memory, another in each process
            message = message.replace(f" {file!r}", "")
        reason = " ".join(message.split()) or type(error).__name__
        raise UnreadableImageError(name, reason) from error
    pixels = with_channels(pixels, in_chans, name)
    return pixels if keep_8_bit else unit(pixels).contiguous()


def unit(image: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1], of uint8 or of such already."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image


def _read_array(file: str | IO[bytes], in_chans: int) -> Tensor:
    array = np.load(file, allow_pickle=False)
    if array.ndim not in (2, 3):
        raise ValueError(f"expected an array [H, W], [H, W, C] or [C, H, W], got shape {array.shape}")
    if array.ndim == 3:
        first, last = array.shape[0], array.shape[2]
        if last != in_chans and (first == in_chans or first < last):
            array = array.transpose(1, 2, 0)
    return pixels_of(array)


def _read_picture(file: str | IO[bytes], in_chans: int, min_side: int | None) -> Tensor:
    with Image.open(file) as image:
        if _is_stack(image, in_chans):
            pages = [_raw_values(ImageOps.exif_transpose(page)) for page in ImageSequence.Iterator(image)]
            return pixels_of(np.stack(pages, axis=-1))
        if min_side is not None:
            factor = min(image.size) / min_side
            if factor >= 2:
                image.draft(None, (math.ceil(image.width / factor), math.ceil(image.height / factor)))
        # In place, and converted only where it must be: each would be a copy of the whole image.
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in RAW_MODES:
            return pixels_of(_raw_values(image))
        mode = plain_mode(image)
        pixels = pixels_of(np.asarray(image if image.mode == mode else image.convert(mode)))
    if mode.endswith("A") and len(pixels) != in_chans:
        colour, opacity = unit(pixels).split((len(pixels) - 1, 1))
        pixels = colour * opacity + (1 - opacity)  # on white
    return pixels


def plain_mode(image: Image.Image) -> str:
    """L, LA, RGB or RGBA: what an 8-bit image is converted to without loss of a channel."""
    return ("L" if image.mode in _GREY_MODES else "RGB") + ("A" if image.has_transparency_data else "")


def _is_stack(image: Image.Image, in_chans: int) -> bool:
    """Whether a TIFF's pages are the channels: as many pages as channels, one channel a page."""
    return (
        image.format == "TIFF"
        and in_chans > 1
        and getattr(image, "n_frames", 1) == in_chans
        and image.mode in ("L", *RAW_MODES)
    )


def _raw_values(image: Image.Image) -> np.ndarray:
    """[H, W]; uint8, uint16 or float32. PIL also uses its 32-bit mode "I" for some 16-bit files."""
    values = np.asarray(image)
    if image.mode != "I":
        return values
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"expected integers of 16 bits, got values from {low} to {high}")
    return values.astype(np.uint16)


def pixels_of(array: np.ndarray) -> Tensor:
    """[H, W] or [H, W, C] of any supported type -> [C, H, W], uint8 of uint8, otherwise float32 in [0, 1].

    Raises:
        ValueError: another type, or values outside of what it may hold.
    """
    if array.size == 0:
        raise ValueError(f"expected pixels, got shape {array.shape}")
    if array.ndim == 2:
        array = array[:, :, None]
    kind = array.dtype
    if kind == np.uint8:
        # A copy, as PIL's buffers are read-only; [H, W, C] in memory, which a crop and its resizing prefer.
        return torch.from_numpy(np.array(array)).permute(2, 0, 1)
    if kind == np.bool_:
        scale = 1.0
    elif kind.kind == "u" and kind.itemsize == 2:
        scale = 65535.0
    elif kind.kind == "i" and kind.itemsize == 2:
        scale = 32767.0
        if array.min() < 0:
            raise ValueError(f"expected int16 values of 0 or more, got {int(array.min())}")
    elif kind.kind == "f":
        scale = 1.0
        low, high = float(array.min()), float(array.max())
        # NaN fails both comparisons.
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"expected floats in [0, 1], got values from {low:g} to {high:g}")
    else:
        raise ValueError(f"expected uint8, uint16, int16 or float in [0, 1], got {kind}")
    # astype copies, which PIL's read-only buffers need.
    return torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32, order="C")).div_(scale)


def with_channels(pixels: Tensor, in_chans: int, name: str) -> Tensor:
    """[C, H, W] as [in_chans, H, W]: grey repeated three times, RGB as grey, anything else refused.

    Raises:
        InputError: naming the image.
    """
    channels = len(pixels)
    if channels == in_chans:
        return pixels
    if channels == 1 and in_chans == 3:
        return pixels.repeat(3, 1, 1)
    if channels == 3 and in_chans == 1:
        return torch.einsum("chw,c->hw", unit(pixels), torch.tensor(_LUMA)).clamp_(0, 1)[None]
    raise InputError(
        f"data.in_chans: expected images of {in_chans} channels, got {channels} in {name}. "
        f"Set --data.in_chans={channels}, or remove the file."
    )
