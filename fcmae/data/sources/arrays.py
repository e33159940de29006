"""All images in one `.npy` file: multi-channel and 16-bit tiles, larger than the memory where need be."""

import os

import numpy as np
from torch import Tensor

from fcmae.config import DataConfig
from fcmae.data.dataset import ImageDataset
from fcmae.data.decode import UnreadableImageError, pixels_of, with_channels
from fcmae.errors import InputError


class ArrayDataset(ImageDataset[Tensor]):
    """The images of an array; the type decides the scale, as in `decode_image`.

    Args:
        array: [N, H, W, C], or [N, C, H, W] with `channels_first`, or [N, H, W]; or the path of such a
            `.npy`, of which each image is read through a memory map.
        in_chans: Channels of the images that `load` returns.
        channels_first: Where the channels are.
        labels: Class of each image, [N]; None: unlabelled.
        name: What messages call the array; None: its path, or `array`.
    """

    def __init__(
        self,
        array: np.ndarray | str,
        *,
        in_chans: int,
        channels_first: bool,
        labels: np.ndarray | None = None,
        name: str | None = None,
    ) -> None:
        self._array = array
        self._in_chans = in_chans
        self._channels_first = channels_first
        self._count = len(self._images())
        self._name = name or (array if isinstance(array, str) else "array")
        if labels is not None:
            self.labels = labels.tolist()
            self.classes = tuple(str(number) for number in range(int(labels.max()) + 1))

    def _images(self) -> np.ndarray:
        # Mapped anew for each image, which costs microseconds: a map that crosses to a loader process by
        # pickling would be copied whole.
        if isinstance(self._array, str):
            return np.lib.format.open_memmap(self._array, mode="r")
        return self._array

    def __len__(self) -> int:
        return self._count

    def name_of(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def containers(self) -> list[str]:
        return [self._array] if isinstance(self._array, str) else []

    def load(self, index: int) -> Tensor:
        try:
            image = self._images()[index]
            if image.ndim == 3 and self._channels_first:
                image = image.transpose(1, 2, 0)
            pixels = pixels_of(image)
        except (OSError, ValueError) as error:
            raise UnreadableImageError(self.name_of(index), " ".join(str(error).split())) from error
        return with_channels(pixels, self._in_chans, self.name_of(index))


def open_arrays(config: DataConfig, *, labelled: bool) -> ArrayDataset:
    """The images of `config.root`, a `.npy` file; nothing but its header is read.

    Raises:
        InputError: no such array, or one that cannot be images of `config.in_chans` channels; or labels are
            wanted and there are none that fit.
    """
    assert config.root is not None  # checked by DataConfig
    path = os.path.expanduser(config.root)
    array = _map(path, "data.root")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(
            f"data.root: expected an array [N, C, H, W], [N, H, W, C] or [N, H, W], got shape {array.shape} "
            f"in {path}. Reshape it."
        )
    kind = array.dtype
    if kind.kind != "f" and kind.newbyteorder("=") not in (np.uint8, np.uint16, np.int16):
        raise InputError(
            f"data.root: expected an array of uint8, uint16, int16 or float in [0, 1], got {kind} in {path}. "
            "Convert it."
        )
    channels_first = array.ndim == 4 and _channels_first(array.shape, config)
    channels = 1 if array.ndim == 3 else array.shape[1 if channels_first else 3]
    if channels != config.in_chans and {channels, config.in_chans} != {1, 3}:
        raise InputError(
            f"data.in_chans: expected images of {config.in_chans} channels, got {channels} in {path} of "
            f"shape {array.shape}. Set --data.in_chans={channels}, or --data.channel_axis=first or last."
        )
    labels = _labels(config.labels, len(array)) if labelled else None
    return ArrayDataset(path, in_chans=config.in_chans, channels_first=channels_first, labels=labels)


def _channels_first(shape: tuple[int, ...], config: DataConfig) -> bool:
    if config.channel_axis != "auto":
        return config.channel_axis == "first"
    first, last = shape[1], shape[3]
    if first == last:
        raise InputError(
            f"data.channel_axis: expected first or last for an array of shape {shape}, which could be both, "
            "got auto. Set --data.channel_axis."
        )
    if config.in_chans in (first, last):
        return first == config.in_chans
    return first < last


def _labels(path: str | None, count: int) -> np.ndarray:
    if path is None:
        raise InputError(
            f"data.labels: expected a .npy file of the classes of {count} images, got none. "
            "Add --data.labels FILE."
        )
    path = os.path.expanduser(path)
    labels = _map(path, "data.labels")
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(
            f"data.labels: expected {count} class numbers from 0 on, got {labels.dtype} of shape "
            f"{labels.shape} in {path}. Check that it belongs to data.root."
        )
    return labels


def _map(path: str, field: str) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InputError(f"{field}: expected a .npy file, got: {reason}: {path}. Check the path.") from error
