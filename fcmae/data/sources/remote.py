"""Files at URLs: copied whole into a folder of this machine when something in them is wanted."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from queue import SimpleQueue
from time import sleep
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import urldefrag
from urllib.request import urlopen

from filelock import FileLock

from fcmae.errors import InputError

ATTEMPTS = 5
"""Of each copy, with pauses that double: 15 seconds of them together."""
SILENCE = 60.0
"""Seconds without a byte after which an attempt has failed."""
_PASSING = (408, 425, 429)  # the HTTP errors below 500 that another attempt may not meet
_CHUNK = 1 << 20
_THREADS = 2


class UnreachableError(InputError):
    """A file at a URL that could not be read, or kept; no image of it is to blame."""


def is_url(root: str) -> bool:
    """Whether `root` is a URL or a command (`pipe:`), not a path."""
    return "://" in root or root.startswith("pipe:")


class RemoteFiles:
    """Copies of files at URLs, in a folder that all processes of a machine share.

    A copy has its name once it is whole, and one process makes it while the others wait. Where the copies
    take up more than `limit`, those that were not read for the longest time are removed: it may cost another
    copy, but never changes what is read. A URL may end in `#` and the SHA-256 that the file must have.

    Args:
        folder: Of the copies; made where there is none.
        limit: Bytes that the copies may take up. One copy is kept even if it is larger.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._wanted: SimpleQueue[tuple[str, int | None]] | None = None
        self._pending: set[str] = set()
        self._failed: dict[str, UnreachableError] = {}

    def __reduce__(self) -> tuple[Callable[[], "RemoteFiles"], tuple[()]]:
        return partial(RemoteFiles, self.folder, limit=self._limit), ()  # threads stay in their process

    def open(self, url: str, *, size: int | None = None) -> BinaryIO:
        """The copy of `url`, which is made first where there is none.

        Args:
            url: A file.
            size: Bytes that it must have; None: any number.
        Raises:
            UnreachableError: it cannot be read in `ATTEMPTS` attempts, has another size, or the folder cannot
                be written to.
        """
        path = self._path_of(url)
        while True:
            try:
                file = open(path, "rb")  # noqa: SIM115 - the caller closes it
            except FileNotFoundError:
                pass
            else:
                if size is None or os.fstat(file.fileno()).st_size == size:
                    os.utime(file.fileno())
                    return file
                file.close()
            if url in self._failed:  # a batch asks for many images of a file: not as often the attempts
                raise self._failed[url]
            try:
                self._copy(url, size)  # and again, should another process remove it before it is opened
            except UnreachableError as error:
                self._failed[url] = error
                raise

    def read(self, url: str) -> bytes:
        """What `url` holds now; no copy is kept.

        Raises:
            UnreachableError: as `open`.
        """
        temporary = self._path_of(url).with_suffix(".part")
        with self.lock(temporary.stem):
            try:
                self._attempt(url, None, temporary)
                return temporary.read_bytes()
            finally:
                temporary.unlink(missing_ok=True)

    def expect(self, url: str, *, size: int | None = None) -> None:
        """Copy `url` in the background, where there is no copy yet; what fails will fail again in `open`."""
        if url in self._pending or self._path_of(url).exists():
            return
        if self._wanted is None:
            self._wanted = SimpleQueue()
            for _ in range(_THREADS):
                threading.Thread(target=self._copy_expected, args=(self._wanted,), daemon=True).start()
        self._pending.add(url)
        self._wanted.put((url, size))

    def _copy_expected(self, wanted: "SimpleQueue[tuple[str, int | None]]") -> None:
        while True:
            url, size = wanted.get()
            try:
                self._copy(url, size)
            except UnreachableError:
                pass  # who reads the file meets it again, and says so
            finally:
                self._pending.discard(url)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process of this machine at a time.

        Raises:
            UnreachableError: the folder cannot be written to.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{name}.lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _path_of(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.copy"

    def _copy(self, url: str, size: int | None) -> None:
        path = self._path_of(url)
        with self.lock(path.stem):
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                found = -1
            if found >= 0 and size in (None, found):  # another process was faster
                return
            temporary = path.with_suffix(".part")
            try:
                self._attempt(url, size, temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        self._remove_oldest(path)

    def _attempt(self, url: str, size: int | None, path: Path) -> None:
        problem, attempt = "", 0
        while attempt < ATTEMPTS:
            if attempt:
                sleep(2.0 ** (attempt - 1))
            attempt += 1
            try:
                count, length, digest = self._read(url, path)
                if length is not None and count != length:
                    problem = f"{count} of {length} bytes"
                elif size is not None and count != size:
                    problem = f"{count} bytes, {size} when its index was made"
                    if length is not None:  # nothing was cut off: it is so
                        break
                elif _digest_in(url) not in ("", digest):
                    problem = "another file than its manifest names"
                else:
                    return
            except HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}"
                if error.code < 500 and error.code not in _PASSING:
                    break
            except (OSError, HTTPException) as error:
                problem = " ".join(str(error).split()) or type(error).__name__
        raise UnreachableError(
            f"data.root: expected to read {url.partition('#')[0]}, got: {problem}, in {attempt} "
            f"attempt{'s' if attempt > 1 else ''}. Check the address and its server."
        )

    def _read(self, url: str, path: Path) -> tuple[int, int | None, str]:
        """Copies `url` to `path`; bytes that came, that the server had announced, and their SHA-256."""
        count, digest = 0, hashlib.sha256()
        with _opened(url) as (stream, length), self._writing_to(path) as write:
            while chunk := stream.read(_CHUNK):
                count += len(chunk)
                digest.update(chunk)
                write(chunk)
        return count, length, digest.hexdigest()

    @contextmanager
    def _writing_to(self, path: Path) -> Iterator[Callable[[bytes], Any]]:
        with self._writing():
            file = open(path, "wb")  # noqa: SIM115 - closed below

        def write(chunk: bytes) -> None:
            with self._writing():
                file.write(chunk)

        try:
            yield write
        finally:
            with self._writing():
                file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # Apart from the network's errors, which are OSErrors too, but pass.
        try:
            yield
        except OSError as error:
            raise UnreachableError(
                f"data.cache_dir: expected to write to {self.folder}, got: {error.strerror or error}. "
                "Free space, lower data.cache_gb, or choose another folder."
            ) from error

    def _remove_oldest(self, kept: Path) -> None:
        copies: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*.copy"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process does the same
                continue
            copies.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in copies) - self._limit
        for _, size, path in sorted(copies):
            if excess <= 0:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                excess -= size


def _digest_in(url: str) -> str:
    return "" if url.startswith("pipe:") else urldefrag(url).fragment


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, int | None]]:
    """(a stream of the bytes at `url`, how many the server says there are)."""
    if url.startswith(("http:", "https:")):
        with urlopen(url, timeout=SILENCE) as response:
            length = response.headers.get("Content-Length")
            yield response, None if length is None else int(length)
    else:
        # pipe:, s3:, gs: and what else webdataset knows, by commands of their own.
        from webdataset.gopen import gopen

        with gopen(url if url.startswith("pipe:") else urldefrag(url).url) as stream:
            yield stream, None
