"""WebDataset shards on a disk, read at random: an index of their members makes them like a folder."""

import tarfile
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fcmae.data.dataset import ImageDataset
from fcmae.data.decode import UnreadableImageError, decode_image
from fcmae.data.sources.shard_index import BLOCK, Index, ShardSet


class ShardDataset(ImageDataset[Tensor]):
    """The images of shards; `min_side` as in `decode_image`.

    Holds 24 bytes an image, and no open file.
    """

    def __init__(
        self,
        shards: ShardSet,
        index: Index,
        *,
        in_chans: int,
        min_side: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._paths = shards.paths
        self._index = index
        self._in_chans = in_chans
        self._min_side = min_side
        if classes is not None:
            self.classes = tuple(classes)
            # A damaged shard's entry is never read: any class will do.
            self.labels = np.maximum(index.label, 0).tolist()

    def __len__(self) -> int:
        return len(self._index.size)

    def name_of(self, index: int) -> str:
        # Nothing is read for it: it is asked for when a disk hangs. `load` names the member.
        return f"{self._path_of(index)}[byte {self._index.offset[index]}]"

    def load(self, index: int) -> Tensor:
        path, size = self._path_of(index), int(self._index.size[index])
        if size < 0:
            damage = self._index.damage[self._index.shard[index]]
            raise UnreadableImageError(path, str(damage))
        try:
            with open(path, "rb") as file:
                file.seek(int(self._index.offset[index]) - BLOCK)
                header, content = file.read(BLOCK), file.read(size)
            name = f"{path}/{tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name}"
        except (OSError, tarfile.HeaderError) as error:
            raise UnreadableImageError(self.name_of(index), str(error)) from error
        if len(content) < size:
            raise UnreadableImageError(
                name, f"expected {size} bytes, got {len(content)}: the shard is cut off"
            )
        return decode_image(
            name,
            in_chans=self._in_chans,
            min_side=self._min_side,
            keep_8_bit=True,
            content=content,
        )

    def _path_of(self, index: int) -> str:
        return self._paths[self._index.shard[index]]
