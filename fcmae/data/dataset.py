"""What every source of images offers: images by index, with their names and classes."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from torch.utils.data import Dataset

from fcmae.data.order import Window

Loaded = TypeVar("Loaded")
"""What is loaded of an image: its pixels, or these and its annotations."""


class ImageDataset(Dataset[Loaded], Generic[Loaded]):
    """Images by index, with their names and, where there are any, their classes."""

    classes: tuple[str, ...] | None = None
    """Names of the classes; None: unlabelled."""
    labels: list[int] | None = None
    """Class of each image, an index into `classes`; None: unlabelled."""
    window: Window | None = None
    """Where images of one file are to be read soon after one another; None: any order is as good."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Loaded:
        return self.load(index)

    def name_of(self, index: int) -> str:
        """What messages call the image: its path, or its number in a built-in set."""
        raise NotImplementedError

    def load(self, index: int) -> Loaded:
        """Pixels [in_chans, H, W], float32 in [0, 1] or uint8; H and W may differ between images.
        Where the images are annotated, a tuple of these and the annotations.

        Raises:
            UnreadableImageError: the image cannot be decoded.
            InputError: its channels cannot become `in_chans`.
        """
        raise NotImplementedError

    def expect(self, indices: Sequence[int]) -> None:
        """Called some time before these images are loaded, in the process that the loader runs in."""

    def containers(self) -> list[str]:
        """Files of this machine that hold the pixels of many images each; none of other sources."""
        return []

    def subset(self, indices: Sequence[int]) -> "ImageDataset[Loaded]":
        """The images at `indices`, in that order, with their classes."""
        return _Subset(self, indices)


class _Subset(ImageDataset[Loaded]):
    def __init__(self, dataset: ImageDataset[Loaded], indices: Sequence[int]) -> None:
        self._dataset = dataset
        self._indices = list(indices)
        self.classes = dataset.classes
        self.labels = None if dataset.labels is None else [dataset.labels[index] for index in self._indices]
        window = dataset.window
        self.window = None if window is None else window._replace(shard=window.shard[self._indices])

    def __len__(self) -> int:
        return len(self._indices)

    def name_of(self, index: int) -> str:
        return self._dataset.name_of(self._indices[index])

    def load(self, index: int) -> Loaded:
        return self._dataset.load(self._indices[index])

    def expect(self, indices: Sequence[int]) -> None:
        self._dataset.expect([self._indices[index] for index in indices])

    def containers(self) -> list[str]:
        return self._dataset.containers()
