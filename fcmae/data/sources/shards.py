"""WebDataset shards, read at random: an index of their members makes them like a folder."""

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fcmae.config import DataConfig
from fcmae.data.decode import UnreadableImageError
from fcmae.data.order import Window
from fcmae.data.sources.encoded import Decoding, EncodedDataset
from fcmae.data.sources.remote import RemoteFiles, is_url
from fcmae.data.sources.shard_index import BLOCK, Index, read_index
from fcmae.data.sources.shard_sets import ShardSet, find_shards
from fcmae.errors import InputError

REMOTE_SHUFFLE_BUFFER = 10_000
"""Of shards at URLs, where `data.shuffle_buffer` is None."""


class ShardDataset(EncodedDataset):
    """The images of shards.

    Holds 24 bytes an image, and no open file.

    Args:
        shards: On a disk, or at URLs.
        index: Of their members.
        decoding: How the images are read.
        classes: Names of the classes; None: unlabelled.
        remote: Reads shards at URLs; None: they lie on a disk.
        shuffle_buffer: Places by which an image of a pass may come earlier or later than in a walk through
            the shuffled shards; None: any number.
    """

    def __init__(
        self,
        shards: ShardSet,
        index: Index,
        decoding: Decoding,
        *,
        classes: Sequence[str] | None = None,
        remote: RemoteFiles | None = None,
        shuffle_buffer: int | None = None,
    ) -> None:
        # A damaged shard's entry is never read: any class will do.
        labels = None if classes is None else np.maximum(index.label, 0).tolist()
        super().__init__(decoding, labels=labels, classes=classes)
        self._paths = shards.paths
        self._urls = shards.urls
        self._index = index
        self._remote = remote
        if shuffle_buffer is not None:
            self.window = Window(index.shard, shuffle_buffer)

    def __len__(self) -> int:
        return len(self._index.size)

    def name_of(self, index: int) -> str:
        # Nothing is read for it: it is asked for when a disk hangs. `load` names the member.
        return f"{self._path_of(index)}[byte {self._index.offset[index]}]"

    def read(self, index: int) -> tuple[str, bytes]:
        path, size = self._path_of(index), int(self._index.size[index])
        if size < 0:
            damage = self._index.damage[self._index.shard[index]]
            raise UnreadableImageError(path, str(damage))
        try:
            with self._open(self._index.shard[index]) as file:
                file.seek(int(self._index.offset[index]) - BLOCK)
                # A damaged header may name more bytes than a computer has.
                header, content = file.read(BLOCK), file.read(min(size, os.fstat(file.fileno()).st_size))
            name = f"{path}/{tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name}"
        except (OSError, tarfile.HeaderError) as error:
            raise UnreadableImageError(self.name_of(index), str(error)) from error
        if len(content) < size:
            raise UnreadableImageError(
                name, f"expected {size} bytes, got {len(content)}: the shard is cut off"
            )
        return name, content

    def expect(self, indices: Sequence[int]) -> None:
        if self._remote is not None:
            for number in np.unique(self._index.shard[indices]):
                self._remote.expect(self._urls[number], size=int(self._index.bytes[number]))

    def containers(self) -> list[str]:
        return self._paths if self._remote is None else []

    def _open(self, number: int) -> BinaryIO:
        if self._remote is None:
            return open(self._paths[number], "rb")
        return self._remote.open(self._urls[number], size=int(self._index.bytes[number]))

    def _path_of(self, index: int) -> str:
        return self._paths[self._index.shard[index]]


def open_shards(
    root: str,
    config: DataConfig,
    *,
    field: str,
    decoding: Decoding,
    labelled: bool,
    classes: tuple[str, ...] | None = None,
) -> ShardDataset:
    """The images of the shards that `root` names.

    Args:
        root: As `config.root`.
        config: The shuffle buffer, and where copies of shards at URLs are kept.
        field: The setting that messages name.
        decoding: How the images are read.
        labelled: Whether their classes are wanted.
        classes: Those that they must have; None: any.
    Raises:
        InputError: as find_shards and read_index; images without a class; or no room for a window of shards.
    """
    remote = None
    if is_url(root):
        folder = Path(os.path.expanduser(config.cache_dir))
        remote = RemoteFiles(folder, limit=round(config.cache_gb * 1e9))
    shards = find_shards(root if remote else os.path.expanduser(root), field=field, remote=remote)
    index = read_index(shards, remote)
    buffer = config.shuffle_buffer
    if remote is not None:
        buffer = REMOTE_SHUFFLE_BUFFER if buffer is None else buffer
        _require_room(config, index, buffer)
    own = None
    if labelled:
        readable = index.label[index.size >= 0]
        if len(readable) == 0 or readable.min() < 0:
            raise InputError(
                f"{field}: expected a class (.cls) with every image, got {int((readable < 0).sum())} of "
                f"{len(readable)} without. Shard a folder of class folders."
            )
        own = shards.classes or tuple(str(number) for number in range(int(readable.max()) + 1))
        if classes is not None and own != classes:
            raise InputError(
                f"{field}: expected the {len(classes)} classes of data.root, got {len(own)} that are not the "
                "same. Shard both from folders with the same class folders."
            )
    return ShardDataset(shards, index, decoding, classes=own, remote=remote, shuffle_buffer=buffer)


def _require_room(config: DataConfig, index: Index, buffer: int) -> None:
    total = int(index.bytes.sum())
    # What lies within `buffer` places on either side, and the shards that begin or end there.
    needed = min(total, 2 * buffer * total // max(len(index.size), 1) + 2 * int(index.bytes.max()))
    if needed > config.cache_gb * 1e9:
        raise InputError(
            f"data.cache_gb: expected at least {needed / 1e9:.3g} for a shuffle buffer of {buffer} images, "
            f"got {config.cache_gb:g}. Raise it, or lower data.shuffle_buffer."
        )
