"""Image files of a folder, and the classes that its subfolders stand for."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

from fcmae.data.decode import IMAGE_EXTENSIONS, UnreadableImageError
from fcmae.data.sources.encoded import Decoding, EncodedDataset
from fcmae.errors import InputError


class FolderDataset(EncodedDataset):
    """Image files.

    Args:
        paths: Of the files.
        decoding: How they are read.
        labels: Class of each image; None: unlabelled.
        classes: Names of the classes.
    """

    def __init__(
        self,
        paths: Sequence[str],
        decoding: Decoding,
        *,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(decoding, labels=labels, classes=classes)
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def name_of(self, index: int) -> str:
        return self._paths[index]

    def read(self, index: int) -> tuple[str, bytes]:
        path = self._paths[index]
        try:
            with open(path, "rb") as file:
                return path, file.read()
        except OSError as error:
            raise UnreadableImageError(path, str(error)) from error


def open_folder(
    root: str, *, field: str, decoding: Decoding, labelled: bool, classes: tuple[str, ...] | None = None
) -> FolderDataset:
    """The images below `root`.

    Raises:
        InputError: as find_images, and with `labelled` as label_by_folder.
    """
    root = os.path.expanduser(root)
    paths = find_images(root, field=field)
    labels = None
    if labelled:
        classes, labels = label_by_folder(root, paths, field=field, classes=classes)
    return FolderDataset(paths, decoding, labels=labels, classes=classes)


class PathList(Sequence[str]):
    """Paths below a folder, in one block of memory: of each, its own bytes and eight more.

    A million strings would take several times as much, and once more in every loader process, which copies
    what it touches.

    Args:
        root: The folder.
        names: Paths relative to it, each read once.
    """

    def __init__(self, root: str, names: Iterable[str]) -> None:
        self._root = root
        self._names = bytearray()
        self._ends = array("q", [0])
        for name in names:
            self._names += os.fsencode(name)
            self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in islice(self._ends, 1, None):
            yield os.path.join(self._root, os.fsdecode(bytes(self._names[start:end])))
            start = end

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        name = self._names[self._ends[places] : self._ends[places + 1]]
        return os.path.join(self._root, os.fsdecode(bytes(name)))


def find_images(root: str, *, field: str) -> PathList:
    """Paths of all image files below `root`, sorted; hidden files and folders are left out, links followed.

    Memory is that of the result and of the names of one folder at a time.

    Args:
        root: Folder to search, with all its subfolders.
        field: The setting that messages name.
    Raises:
        InputError: no such folder, a folder that cannot be read, or no image in it.
    """
    if not os.path.isdir(root):
        found = "a file" if os.path.exists(root) else "no such folder"
        raise InputError(f"{field}: expected a folder of images, got {found}: {root}. Check the path.")
    paths = PathList(root, _walk(root, "", ancestors=frozenset(), field=field))
    if not paths:
        raise InputError(
            f"{field}: expected image files ({' '.join(IMAGE_EXTENSIONS)}) in {root} or below, got none. "
            f"Check the path."
        )
    return paths


def _walk(root: str, folder: str, *, ancestors: frozenset[tuple[int, int]], field: str) -> Iterator[str]:
    """Paths relative to `root` of the images in `folder`, which is relative too and ends in a separator."""
    path = os.path.join(root, folder)
    names: list[str] = []
    try:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:  # a link to a folder above itself
            return
        with os.scandir(path) as scan:
            for entry in scan:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    names.append(entry.name + os.sep)
                elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    names.append(entry.name)
    except OSError as error:
        raise InputError(
            f"{field}: expected a readable folder, got {error.strerror}: {path}. Check it."
        ) from error
    # With the separator behind folders' names, folder after folder is the order of all paths sorted at once.
    names.sort()
    for name in names:
        if name.endswith(os.sep):
            yield from _walk(root, folder + name, ancestors=ancestors | {identity}, field=field)
        else:
            yield folder + name


def label_by_folder(
    root: str, paths: Sequence[str], *, field: str, classes: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], list[int]]:
    """Classes and the class of each path: the subfolder of `root` that it lies in.

    Args:
        root: Folder of class folders.
        paths: Image files below `root`, as `find_images` gives them.
        field: The setting that messages name.
        classes: Known classes, for validation images; None: the subfolders in alphabetical order.
    Raises:
        InputError: images outside a class folder, a class folder without images, or a class not in `classes`.
    """
    prefix = len(os.path.join(root, ""))

    def folders_of() -> Iterator[str]:
        """The class folder of each path, or the empty string; not a list, of which there may be millions."""
        for path in paths:
            folder, separator, _ = path[prefix:].partition(os.sep)
            yield folder if separator else ""

    found = set(folders_of())
    if "" in found:
        loose = [path for path, folder in zip(paths, folders_of(), strict=True) if not folder]
        raise InputError(
            f"{field}: expected one subfolder of {root} a class, got {len(loose)} images outside of any, "
            f"such as {loose[0]}. Move each image into its class's folder."
        )
    if classes is None:
        with os.scandir(root) as scan:
            folders = {entry.name for entry in scan if entry.is_dir() and not entry.name.startswith(".")}
        empty = sorted(folders - found)
        if empty:
            raise InputError(
                f"{field}: expected images in every class folder of {root}, got none in {empty[0]!r}. "
                f"Add images or remove the folder."
            )
        classes = tuple(sorted(found))
    unknown = sorted(found - set(classes))
    if unknown:
        raise InputError(
            f"{field}: expected the classes of data.root, got {unknown[0]!r}. "
            f"Add it there, or remove the folder."
        )
    index_of = {name: index for index, name in enumerate(classes)}
    return classes, [index_of[folder] for folder in folders_of()]
