"""Listing files: the order, what it costs in memory, and names of any kind."""

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from fcmae.data.sources import folders
from fcmae.data.sources.folders import PathList, find_images, label_by_folder

CLASSES = tuple(f"n0{number:07}" for number in range(1000))


def test_the_order_is_that_of_all_paths_sorted_at_once(tmp_path: Path):
    names = [
        "a/1.png",
        "a-/1.png",
        "a.png",
        "a.png.d/1.png",
        "a0/1.png",
        "Z.png",
        "a/b/1.png",
        "a/b.png",
        "é.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).touch()  # no UTF-8
    paths = find_images(str(tmp_path), field="data.root")
    expected = sorted(str(path) for path in tmp_path.rglob("*.png") if path.is_file())
    assert list(paths) == expected and len(paths) == 10
    assert paths[-1] == expected[-1] and paths[2:4] == expected[2:4]
    assert all(os.path.exists(path) for path in paths)
    with pytest.raises(IndexError):
        paths[10]
    assert list(PathList("/root", [])) == []


@dataclass(slots=True)
class Entry:
    name: str
    is_folder: bool

    def is_dir(self) -> bool:
        return self.is_folder


def fake_tree(monkeypatch: pytest.MonkeyPatch, count: int, per_folder: int) -> None:
    """`os.scandir` of a folder of class folders of image files, none of which exists."""

    @contextmanager
    def scandir(path: str) -> Iterator[Iterator[Entry]]:
        folder = os.path.basename(os.path.normpath(path))
        if folder.startswith("n0"):
            yield (Entry(f"{folder}_{number:05}.JPEG", False) for number in range(per_folder))
        else:
            yield (Entry(f"n0{number:07}", True) for number in range(count // per_folder))

    numbers = iter(range(count))
    monkeypatch.setattr(folders.os, "scandir", scandir)
    monkeypatch.setattr(folders.os, "stat", lambda path: SimpleNamespace(st_dev=0, st_ino=next(numbers)))
    monkeypatch.setattr(folders.os.path, "isdir", lambda path: True)


@pytest.mark.parametrize(
    ("count", "per_folder"),
    [(50_000, 1000), (50_000, 50_000), pytest.param(1_000_000, 1000, marks=pytest.mark.slow)],
    ids=["nested", "flat", "a million"],
)
def test_listing_takes_few_bytes_a_file(monkeypatch: pytest.MonkeyPatch, count: int, per_folder: int):
    fake_tree(monkeypatch, count, per_folder)
    tracemalloc.start()
    paths = find_images("/images", field="data.root")
    kept, peak = tracemalloc.get_traced_memory()
    labels = label_by_folder("/images", paths, field="data.root", classes=CLASSES)[1]
    with_labels, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(paths) == count and paths[0] == "/images/n00000000/n00000000_00000.JPEG"
    own = len("n00000000/n00000000_00000.JPEG")
    # Its own letters and eight bytes, an eighth more where the block grew; plus the names of one folder.
    assert kept < count * (own + 8) * 1.2
    assert with_labels - kept < count * 8 * 1.2 and labels[-1] == count // per_folder - 1
    assert peak < kept * 1.2 + per_folder * 100 + 100_000
