"""Where in their shards the images lie: an index of the tar headers, made once and kept."""

import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fcmae.data.decode import IMAGE_EXTENSIONS
from fcmae.data.sources.remote import RemoteFiles
from fcmae.data.sources.shard_sets import ShardSet
from fcmae.errors import InputError

BLOCK = tarfile.BLOCKSIZE
"""Bytes that a header takes, and a multiple of which a member does."""
_THREADS = 4
_LARGEST = 2**62
"""Bytes of a member; a damaged header may name more than fit into the index."""

Row = tuple[int, int, int]
"""Offset, size and label of an image."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """Where each image lies; a damaged shard has one entry more, of size -1, at its end."""

    shard: np.ndarray
    """int32 [N], an index into the paths."""
    offset: np.ndarray
    """int64 [N], of the image's bytes; its header is the block before."""
    size: np.ndarray
    """int64 [N], in bytes."""
    label: np.ndarray
    """int32 [N]; -1: none."""
    damage: np.ndarray
    """Of each shard, what is wrong with it, or an empty string."""
    bytes: np.ndarray
    """int64, of each shard."""


def read_index(shards: ShardSet, remote: RemoteFiles | None = None) -> Index:
    """The index of shards, built from the tar headers once and kept.

    Of shards on a disk, it is kept in a hidden file beside them, and built anew where a shard's size or time
    is another; a folder that cannot be written to has no such file, and waits for the headers each time. Of
    shards at URLs, it is the one that their manifest names, or is built by reading each of them once, and
    kept among the copies.

    Raises:
        InputError: a shard at a URL, or its index, cannot be read.
    """
    if remote is None:
        return _local_index(shards)
    if shards.index is not None:
        with remote.open(shards.index) as file:
            index = _load(file)
        if index is None:
            raise InputError(
                f"data.root: expected an index by fcmae data shard, got another file: {shards.index}. "
                "Shard the images anew."
            )
        return index
    digest = hashlib.sha256(json.dumps([shards.urls, shards.samples]).encode()).hexdigest()
    kept = remote.folder / f"index-{digest[:16]}.npz"
    with remote.lock(kept.stem):
        index = _load(kept)
        if index is None:
            index = build_index(shards, open_=remote.open, threads=_THREADS)
            _save(index, kept)
    return index


def _local_index(shards: ShardSet) -> Index:
    states = [(path, os.stat(path)) for path in shards.paths]
    key = json.dumps([(path, state.st_size, state.st_mtime_ns) for path, state in states] + [shards.samples])
    digest = hashlib.sha256(key.encode()).hexdigest()
    kept = Path(shards.paths[0]).parent / f".index-{digest[:16]}.npz"
    index = _load(kept)
    if index is None:
        index = build_index(shards)
        _save(index, kept)
    return index


def _load(file: Path | BinaryIO) -> Index | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Index(**{name: arrays[name] for name in Index.__dataclass_fields__})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none yet, or a damaged one
        return None


def _save(index: Index, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write_index(index, temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def write_index(index: Index, path: Path) -> None:
    """Write `index` to a file; the same index gives the same bytes."""
    with open(path, "wb") as file:
        np.savez(file, **vars(index))


class _Scanned(NamedTuple):
    rows: list[Row]
    problem: str
    bytes: int


def build_index(
    shards: ShardSet, *, open_: Callable[[str], BinaryIO] | None = None, threads: int = 1
) -> Index:
    """The index of shards from their tar headers.

    Args:
        shards: At paths or at URLs.
        open_: Opens one of `shards.urls`; None: they are files.
        threads: That open and read them; more than one helps where a shard has to come from afar.
    """

    def look_at(path: str) -> _Scanned:
        try:
            with open_(path) if open_ else open(path, "rb") as file:
                return _Scanned(*_scan(file), os.fstat(file.fileno()).st_size)
        except OSError as error:
            return _Scanned([], " ".join(str(error).split()), 0)

    columns: dict[str, list[np.ndarray]] = {"shard": [], "offset": [], "size": [], "label": []}
    damage: list[str] = []
    sizes: list[int] = []
    with ThreadPoolExecutor(threads) as pool:
        for number, (rows, problem, size) in enumerate(
            pool.map(look_at, shards.urls if open_ else shards.paths)
        ):
            if shards.samples is not None and len(rows) != shards.samples[number]:
                problem = f"expected {shards.samples[number]} images, got {len(rows)}: {problem or 'others'}"
            damage.append(problem)
            sizes.append(size)
            if problem:
                rows.append((BLOCK, -1, -1))
            table = np.array(rows, dtype=np.int64).reshape(-1, 3)
            columns["shard"].append(np.full(len(table), number, dtype=np.int32))
            for name, values in zip(("offset", "size", "label"), table.T, strict=True):
                columns[name].append(values.astype(np.int32 if name == "label" else np.int64))
    return Index(
        damage=np.array(damage, dtype=np.str_),
        bytes=np.array(sizes, dtype=np.int64),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    )


def _scan(file: BinaryIO) -> tuple[list[Row], str]:
    """(offset, size, label) of each image of a shard, and what is wrong with the shard."""
    rows: list[Row] = []
    current: str | None = None
    image: tuple[int, int] | None = None
    label, expected, problem = -1, 0, ""

    def finish() -> None:
        if image is not None:
            rows.append((*image, label))

    try:
        # With ignore_zeros a damaged header is stepped over, to the next good one.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined] - it would keep every header
                if member.offset != expected:
                    problem = problem or f"damaged at byte {expected}"
                expected = member.offset_data + -(-member.size // BLOCK) * BLOCK
                key, extension = _split(member.name)
                if not member.isfile() or key is None:
                    continue
                if key != current:
                    finish()
                    current, image, label = key, None, -1
                if extension in IMAGE_EXTENSIONS and image is None:
                    image = (member.offset_data, max(-1, min(member.size, _LARGEST)))
                elif extension == ".cls":
                    place = file.tell()
                    file.seek(member.offset_data)
                    text = file.read(min(member.size, BLOCK))
                    file.seek(place)
                    label = int(text) if text.strip().isdigit() and len(text) < 10 else -1  # int32
            file.seek(expected)
            tail = file.read(BLOCK)
            if len(tail) < BLOCK or any(tail):
                problem = problem or f"damaged or truncated at byte {expected}"
    except (OSError, OverflowError, ValueError, tarfile.TarError) as error:  # a header may name any size
        problem = problem or " ".join(str(error).split())
    finish()
    return rows, problem


def _split(name: str) -> tuple[str | None, str]:
    """Key and extension of a member as webdataset has them: the name up to its first dot, and the rest."""
    folder, slash, base = name.rpartition("/")
    stem, dot, rest = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else None), f"{dot}{rest.lower()}"
