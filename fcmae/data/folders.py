"""Image files of a folder, and the classes that its subfolders stand for."""

import os
from collections.abc import Sequence

from fcmae.data.decode import IMAGE_EXTENSIONS
from fcmae.errors import InputError


def find_images(root: str, *, field: str) -> list[str]:
    """Paths of all image files below `root`, sorted; hidden files and folders are left out, links followed.

    Args:
        root: Folder to search, with all its subfolders.
        field: The setting that messages name.
    Raises:
        InputError: no such folder, a folder that cannot be read, or no image in it.
    """
    if not os.path.isdir(root):
        found = "a file" if os.path.exists(root) else "no such folder"
        raise InputError(f"{field}: expected a folder of images, got {found}: {root}. Check the path.")
    paths = sorted(_walk(root, ancestors=frozenset(), field=field))
    if not paths:
        raise InputError(
            f"{field}: expected image files ({' '.join(IMAGE_EXTENSIONS)}) in {root} or below, got none. "
            f"Check the path."
        )
    return paths


def _walk(folder: str, *, ancestors: frozenset[tuple[int, int]], field: str) -> list[str]:
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:  # a link to a folder above itself
            return []
        with os.scandir(folder) as scan:
            entries = [(entry, entry.is_dir()) for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"{field}: expected a readable folder, got {error.strerror}: {folder}. Check it."
        ) from error
    paths: list[str] = []
    for entry, is_folder in entries:
        if is_folder:
            paths += _walk(entry.path, ancestors=ancestors | {identity}, field=field)
        elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
            paths.append(entry.path)
    return paths


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
    names = [path[prefix:].split(os.sep) for path in paths]
    loose = [path for path, parts in zip(paths, names, strict=True) if len(parts) == 1]
    if loose:
        raise InputError(
            f"{field}: expected one subfolder of {root} a class, got {len(loose)} images outside of any, "
            f"such as {loose[0]}. Move each image into its class's folder."
        )
    found = {parts[0] for parts in names}
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
    return classes, [index_of[parts[0]] for parts in names]
