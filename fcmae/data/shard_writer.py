"""A folder of images as WebDataset shards: resized, encoded anew, packed into tar files with a manifest."""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps
from webdataset.writer import TarWriter

from fcmae.data.decode import RAW_MODES, UnreadableImageError, plain_mode
from fcmae.data.parallel import ordered_map
from fcmae.data.sources.encoded import EncodedDataset
from fcmae.data.sources.shard_index import build_index, write_index
from fcmae.data.sources.shard_sets import MANIFEST, ShardSet
from fcmae.errors import InputError

INDEX = "index.npz"
"""Where each image lies: with it, shards at URLs can be read without reading all of them first."""
CHECKSUMS = "SHA256SUMS"
"""In the form of the `sha256sum` command: `sha256sum -c SHA256SUMS` checks all shards."""

_PIL_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How an image is kept."""

    short_side: int | None = None
    """Pixels that the shorter side is reduced to; smaller images stay, None: all do."""
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = 90
    """Of jpg and webp, 1 to 100."""


def write_shards(
    dataset: EncodedDataset,
    out: Path,
    *,
    encoding: Encoding,
    shard_bytes: int,
    workers: int = 0,
    progress: Callable[[Iterator[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Write `out`/shard-000000.tar and on, index.npz, SHA256SUMS and manifest.json; the last is returned.

    A sample is `<number>_<file name>.jpg`, with `.cls`, the class number, where there are labels. Neither the
    time nor the number of workers changes a byte. A shard has its name only once it is whole, and the
    manifest comes last: a folder without one is not finished.

    Args:
        dataset: Images; those that cannot be read are left out and named in the manifest.
        out: A folder that is new or empty.
        encoding: Size, format and quality.
        shard_bytes: A shard ends with the sample that reaches this.
        workers: Processes that decode and encode; 0: this one.
        progress: Wraps the iterator over the images, for a bar.
    Raises:
        InputError: `out` is not empty or cannot be written, or no image is readable.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"OUT: expected a new or empty folder, got files in {out}. Choose another.")
        writer = _Writer(out, shard_bytes)
        bad: list[str] = []
        encoded = ordered_map(partial(_encode, encoding, dataset), range(len(dataset)), workers=workers)
        for number, found in enumerate(progress(encoded)):
            if isinstance(found, InputError):
                raise found
            name, content, reason = found
            if reason is not None:
                bad.append(f"{name}: {reason}")
                continue
            stem = re.sub(r"[^\w-]", "_", Path(name).stem, flags=re.ASCII)[:60]
            sample = {"__key__": f"{number:09d}_{stem}", encoding.format: content}
            if dataset.labels is not None:
                sample["cls"] = str(dataset.labels[number]).encode()
            writer.write(sample)
        writer.close()
        if not writer.shards:
            raise InputError(
                f"DIR: expected a readable image, got none; the first is {bad[0]}. Check the files."
            )
        index = build_index(ShardSet(paths=[str(out / shard["name"]) for shard in writer.shards]))
        write_index(index, out / INDEX)
        digest = hashlib.sha256((out / INDEX).read_bytes()).hexdigest()
        manifest = {
            "samples": sum(shard["samples"] for shard in writer.shards),
            "classes": None if dataset.classes is None else list(dataset.classes),
            "encoding": asdict(encoding),
            "index": {"name": INDEX, "sha256": digest},
            "shards": writer.shards,
            "bad": bad,
        }
        summed = [*writer.shards, manifest["index"]]
        sums = "".join(f"{file['sha256']}  {file['name']}\n" for file in summed)
        _replace(out / CHECKSUMS, sums.encode())
        _replace(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(
            f"OUT: expected to write {out}, got: {error.strerror}. Free space or choose another."
        ) from error
    return manifest


def _encode(
    encoding: Encoding, dataset: EncodedDataset, index: int
) -> tuple[str, bytes, str | None] | InputError:
    """(name, the file that stands in the shard, None), or (name, nothing, why there is none)."""
    name = dataset.name_of(index)
    try:
        name, content = dataset.read(index)
        return name, _encoded(name, content, encoding), None
    except InputError as error:
        return error
    except UnreadableImageError as error:
        return error.name, b"", error.reason
    except Exception as error:  # as in decode_image: PIL meets a damaged file with almost any exception
        # PIL would name the bytes' place in memory, another in each process.
        message = re.sub(r" <_io\.BytesIO[^>]*>", "", str(error))
        return name, b"", " ".join(message.split()) or type(error).__name__


def _encoded(name: str, content: bytes, encoding: Encoding) -> bytes:
    if name.lower().endswith(".npy"):
        raise ValueError("shards hold pictures; put arrays into one .npy, for data.source=arrays")
    target, wanted = _PIL_FORMATS[encoding.format], encoding.short_side
    with Image.open(io.BytesIO(content)) as image:
        shrinks = wanted is not None and min(image.size) > wanted
        if image.format == target and not shrinks:
            image.load()  # whole?
            return content
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("shards hold pictures of one page; put stacks into one .npy instead")
        if shrinks:
            assert wanted is not None
            # A JPEG is decoded at a half, a quarter or an eighth, if that leaves twice what is wanted.
            image.draft(None, (2 * wanted, 2 * wanted))
        upright = ImageOps.exif_transpose(image)
        if upright.mode in RAW_MODES:
            if encoding.format != "png":
                raise ValueError(f"more than 8 bits do not fit into {encoding.format}; take --format png")
            picture = _deep(upright)
        else:
            picture = upright.convert(plain_mode(upright))
            if encoding.format == "jpg" and picture.mode.endswith("A"):
                colour = picture.mode.removesuffix("A")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA")).convert(colour)
        if shrinks and wanted is not None:
            factor = wanted / min(picture.size)
            width, height = (max(wanted, round(factor * side)) for side in picture.size)
            picture = _resized(picture, (width, height))
        buffer = io.BytesIO()
        picture.save(buffer, target, **({} if encoding.format == "png" else {"quality": encoding.quality}))
        return buffer.getvalue()


def _deep(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError("expected at most 16 bits, got floats or larger values; put arrays into one .npy")
    return Image.fromarray(values.astype(np.uint16))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.mode != "I;16":
        return picture.resize(size, Image.Resampling.LANCZOS)
    floats = Image.fromarray(np.asarray(picture).astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    return Image.fromarray(np.asarray(floats).round().clip(0, 65535).astype(np.uint16))


class _Writer:
    """Shards one after another; each is renamed to its name when it is whole and on the disk."""

    def __init__(self, out: Path, shard_bytes: int) -> None:
        self._out = out
        self._shard_bytes = shard_bytes
        self._file: io.BufferedWriter | None = None
        self._samples = 0
        self.shards: list[dict[str, Any]] = []

    def write(self, sample: dict[str, Any]) -> None:
        if self._file is None:
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed with the shard
            self._tar = TarWriter(self._file, encoder=False, mtime=0)
        self._tar.write(sample)
        self._samples += 1
        if self._tar.tarstream.offset >= self._shard_bytes:
            self.close()

    def close(self) -> None:
        if self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        name = f"shard-{len(self.shards):06d}.tar"
        with open(self._temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        os.replace(self._temporary, self._out / name)
        self.shards.append({"name": name, "samples": self._samples, "bytes": size, "sha256": digest})
        self._samples = 0

    @property
    def _temporary(self) -> Path:
        return self._out / ".shard.tmp"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
