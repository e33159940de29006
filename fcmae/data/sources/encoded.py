"""Images that are kept as image files, whatever holds these."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fcmae.data.dataset import ImageDataset
from fcmae.data.decode import decode_image


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How image files are read; as the arguments of `decode_image`."""

    in_chans: int
    min_side: int | None = None


class EncodedDataset(ImageDataset[Tensor]):
    """Images as the bytes of image files.

    Args:
        decoding: How `load` reads them.
        labels: Class of each image; None: unlabelled.
        classes: Names of the classes.
    """

    def __init__(
        self,
        decoding: Decoding,
        *,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._decoding = decoding
        self.labels = None if labels is None else list(labels)
        self.classes = None if classes is None else tuple(classes)

    def read(self, index: int) -> tuple[str, bytes]:
        """The name of an image, and its file's bytes.

        Raises:
            UnreadableImageError: there are none.
        """
        raise NotImplementedError

    def load(self, index: int) -> Tensor:
        name, content = self.read(index)
        how = self._decoding
        return decode_image(
            name, in_chans=how.in_chans, min_side=how.min_side, keep_8_bit=True, content=content
        )
