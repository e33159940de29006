"""Which shards there are, and where in them each image lies: an index of their tar headers."""

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcmae.data.decode import IMAGE_EXTENSIONS
from fcmae.errors import InputError

MANIFEST = "manifest.json"
BLOCK = tarfile.BLOCKSIZE
"""Bytes that a header takes, and a multiple of which a member does."""


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """Shards in order, and what a manifest says of them."""

    paths: list[str]
    classes: tuple[str, ...] | None = None
    samples: list[int] | None = None
    """Of each shard; None: unknown."""


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


def find_shards(root: str, *, field: str) -> ShardSet:
    """The shards of a folder (in the order of its manifest, or of their names) or of a brace pattern.

    Args:
        root: A folder, `shard-000.tar`, or `shard-{000..146}.tar`.
        field: The setting that messages name.
    Raises:
        InputError: a URL, no shard, a shard that is missing, or a manifest that cannot be read.
    """
    if "://" in root or root.startswith("pipe:"):
        raise InputError(
            f"{field}: expected shards on a disk, got the URL {root}. Copy them, and name the folder."
        )
    folder = Path(root)
    if not folder.is_dir():
        # Here, not above: the GPU benchmark imports this package where only PyTorch and timm are installed.
        from braceexpand import braceexpand

        return ShardSet(paths=[_existing(path, field) for path in braceexpand(root)])
    manifest = folder / MANIFEST
    if not manifest.exists():
        paths = sorted(str(path) for path in folder.glob("*.tar"))
        if not paths:
            raise InputError(
                f"{field}: expected {MANIFEST} or .tar files in {root}, got none. Check the path."
            )
        return ShardSet(paths=paths)
    try:
        facts: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        entries = [(str(shard["name"]), int(shard["samples"])) for shard in facts["shards"]]
        classes = facts.get("classes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{field}: expected a manifest by fcmae data shard, got {error!r}: {manifest}. "
            "Shard the images anew."
        ) from error
    return ShardSet(
        paths=[_existing(str(folder / name), field) for name, _ in entries],
        classes=None if classes is None else tuple(classes),
        samples=[samples for _, samples in entries],
    )


def _existing(path: str, field: str) -> str:
    if not os.path.isfile(path):
        raise InputError(f"{field}: expected a shard, got no such file: {path}. Check the path.")
    return path


def read_index(shards: ShardSet) -> Index:
    """The index of shards, built from the tar headers once and kept in a hidden file beside them.

    It is built anew where a shard's size or time is another. A folder that cannot be written to has no such
    file, and waits for the headers each time.
    """
    states = [(path, os.stat(path)) for path in shards.paths]
    key = json.dumps([(path, state.st_size, state.st_mtime_ns) for path, state in states] + [shards.samples])
    digest = hashlib.sha256(key.encode()).hexdigest()
    cache = Path(shards.paths[0]).parent / f".index-{digest[:16]}.npz"
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            return Index(**{name: arrays[name] for name in Index.__dataclass_fields__})
    except (OSError, ValueError, KeyError):  # none yet, or a damaged one
        pass
    index = _build_index(shards)
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **vars(index))
        os.replace(temporary, cache)
    except OSError:
        temporary.unlink(missing_ok=True)
    return index


def _build_index(shards: ShardSet) -> Index:
    columns: dict[str, list[np.ndarray]] = {"shard": [], "offset": [], "size": [], "label": []}
    damage: list[str] = []
    for number, path in enumerate(shards.paths):
        rows, problem = _scan(path)
        if shards.samples is not None and len(rows) != shards.samples[number]:
            problem = f"expected {shards.samples[number]} images, got {len(rows)}: {problem or 'others'}"
        damage.append(problem)
        if problem:
            rows.append((BLOCK, -1, -1))
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        columns["shard"].append(np.full(len(table), number, dtype=np.int32))
        for name, values in zip(("offset", "size", "label"), table.T, strict=True):
            columns[name].append(values.astype(np.int32 if name == "label" else np.int64))
    return Index(
        damage=np.array(damage, dtype=np.str_),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    )


def _scan(path: str) -> tuple[list[tuple[int, int, int]], str]:
    """(offset, size, label) of each image of a shard, and what is wrong with the shard."""
    rows: list[tuple[int, int, int]] = []
    current: str | None = None
    image: tuple[int, int] | None = None
    label, expected, problem = -1, 0, ""

    def finish() -> None:
        if image is not None:
            rows.append((*image, label))

    try:
        # With ignore_zeros a damaged header is stepped over, to the next good one.
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
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
                    image = (member.offset_data, member.size)
                elif extension == ".cls":
                    place = file.tell()
                    file.seek(member.offset_data)
                    text = file.read(member.size)
                    file.seek(place)
                    label = int(text) if text.strip().isdigit() else -1
            file.seek(expected)
            tail = file.read(BLOCK)
            if len(tail) < BLOCK or any(tail):
                problem = problem or f"damaged or truncated at byte {expected}"
    except (OSError, tarfile.TarError) as error:
        problem = problem or " ".join(str(error).split())
    finish()
    return rows, problem


def _split(name: str) -> tuple[str | None, str]:
    """Key and extension of a member as webdataset has them: the name up to its first dot, and the rest."""
    folder, slash, base = name.rpartition("/")
    stem, dot, rest = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else None), f"{dot}{rest.lower()}"
