"""Which few images of each class low-shot evaluation learns from: fixed lists, the same on every machine."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fcmae.errors import InputError
from fcmae.evaluation.features import Split

SPLITS = 3
"""Lists of each size, as in MSN."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """So many images of each class, or a share of them."""

    per_class: int = 0
    """0: `percent` counts."""
    percent: float = 0.0

    def count(self, images: int) -> int:
        """Images of a class that has so many: of a share, rounded to nearest, at least one."""
        return self.per_class or max(1, round(images * self.percent / 100))

    def __str__(self) -> str:
        return f"{self.per_class} a class" if self.per_class else f"{self.percent:g} %"

    @property
    def file_stem(self) -> str:
        """Name of its lists."""
        return f"{self.per_class}imgs" if self.per_class else f"{self.percent:g}percent"


def draw(names: Sequence[str], labels: Sequence[int], size: Size, *, number: int) -> list[int]:
    """Indices of the images of list `number`, class by class.

    Of each class those whose hash of "number/name" is smallest, so that the order of the files, the machine
    and the version of any library play no part, and a list holds those of smaller sizes.

    Args:
        names: Of the images, the same wherever the data lies.
        labels: Their classes.
        size: How many of each class.
        number: 0, 1 or 2.
    Raises:
        InputError: a class has fewer images.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    chosen = []
    for label in sorted(by_class):
        members = sorted(by_class[label], key=lambda index: _rank(names[index], number))
        count = size.count(len(members))
        if count > len(members):
            raise InputError(
                f"lowshot.per_class: expected at most the {len(members)} training images of each class, got "
                f"{count}. Lower it, or add images."
            )
        chosen += members[:count]
    return chosen


def _rank(name: str, number: int) -> bytes:
    return hashlib.blake2b(f"{number}/{name}".encode(), digest_size=16).digest()


def load_or_write(folder: Path, split: Split, size: Size, *, number: int) -> list[int]:
    """The images of a list; a missing file is drawn and written first.

    A file has one image a line, `class/image.jpg` for folders; empty lines and those after `#` are skipped.
    The original's file of 3 images a class holds 5 of each: so the counts are compared.

    Raises:
        InputError: a name that is no training image, one given twice, a class with another number of images
            than the size says, or a folder that cannot be written.
    """
    path = folder / f"{size.file_stem}_{number}.txt"
    labels = split.labels.tolist()
    if not path.exists():
        chosen = draw(split.names, labels, size, number=number)
        _write(path, [f"# {size}, list {number} of {SPLITS}", *(split.names[index] for index in chosen)])
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [line for line in lines if line]
    place = {name: index for index, name in enumerate(split.names)}
    unknown = [name for name in names if name not in place]
    if unknown:
        raise InputError(
            f"lowshot.splits: expected names of training images in {path}, got {unknown[0]!r} and "
            f"{len(unknown) - 1} more that are none. Use the data they were made of, or another folder."
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"lowshot.splits: expected each image once in {path}, got {repeated[0]!r} twice.")
    found = Counter(labels[place[name]] for name in names)
    for label, images in sorted(Counter(labels).items()):
        if found[label] != size.count(images):
            raise InputError(
                f"lowshot.splits: expected {size.count(images)} images of each class in {path}, got "
                f"{found[label]} of {split.classes[label]!r}. Correct the list, or delete it to draw it anew."
            )
    return [place[name] for name in names]


def _write(path: Path, lines: Sequence[str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"lowshot.splits: expected to write {path}, got: {error.strerror}. Choose another folder."
        ) from error
