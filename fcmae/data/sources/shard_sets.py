"""Which shards there are: of a folder, a manifest or a pattern, on a disk or at URLs."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fcmae.data.sources.remote import RemoteFiles
from fcmae.errors import InputError

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """Shards in order, and what a manifest says of them."""

    paths: list[str]
    """Or URLs."""
    digests: list[str] | None = None
    """Their SHA-256; None: unknown."""
    classes: tuple[str, ...] | None = None
    samples: list[int] | None = None
    """Of each shard; None: unknown."""
    index: str | None = None
    """Of the index that was written with them, as in `urls`."""

    @property
    def urls(self) -> list[str]:
        """As RemoteFiles takes them: with their SHA-256 where it is known."""
        if self.digests is None:
            return self.paths
        return [f"{path}#{digest}" for path, digest in zip(self.paths, self.digests, strict=True)]


def find_shards(root: str, *, field: str, remote: RemoteFiles | None = None) -> ShardSet:
    """The shards of a folder (in the order of its manifest, or of their names) or of a brace pattern.

    Args:
        root: A folder, `shard-000.tar`, or `shard-{000..146}.tar`. At a URL: the same, a folder only with a
            manifest. Or `pipe:` and a command with such braces that writes a shard.
        field: The setting that messages name.
        remote: Reads URLs, where `root` is one.
    Raises:
        InputError: no shard, a shard that is missing, or a manifest that cannot be read.
    """
    if remote is not None:
        if root.startswith("pipe:") or urlsplit(root).path.endswith(".tar"):
            return ShardSet(paths=_expanded(root, field))
        folder = root.removesuffix(MANIFEST).rstrip("/")
        manifest = f"{folder}/{MANIFEST}"
        return _from_manifest(remote.read(manifest), manifest, folder, field)
    if not os.path.isdir(root):
        return ShardSet(paths=[_existing(path, field) for path in _expanded(root, field)])
    manifest = os.path.join(root, MANIFEST)
    if os.path.exists(manifest):
        shards = _from_manifest(Path(manifest).read_bytes(), manifest, root, field)
        for path in shards.paths:
            _existing(path, field)
        return shards
    paths = sorted(str(path) for path in Path(root).glob("*.tar"))
    if not paths:
        raise InputError(f"{field}: expected {MANIFEST} or .tar files in {root}, got none. Check the path.")
    return ShardSet(paths=paths)


def _expanded(pattern: str, field: str) -> list[str]:
    # Here, not above: the GPU benchmark imports this package where only PyTorch and timm are installed.
    from braceexpand import braceexpand

    if os.path.isfile(pattern):
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise InputError(
            f"{field}: expected a shard, or a pattern such as shard-{{000..146}}.tar, got half a pair of "
            f"braces: {pattern}. Close it."
        ) from error


def _from_manifest(content: bytes, manifest: str, folder: str, field: str) -> ShardSet:
    try:
        facts: dict[str, Any] = json.loads(content)
        entries = [
            (str(shard["name"]), int(shard["samples"]), str(shard["sha256"])) for shard in facts["shards"]
        ]
        classes, index = facts.get("classes"), facts.get("index")
        return ShardSet(
            paths=[f"{folder}/{name}" for name, _, _ in entries],
            digests=[digest for _, _, digest in entries],
            classes=None if classes is None else tuple(classes),
            samples=[samples for _, samples, _ in entries],
            index=None if index is None else f"{folder}/{index['name']}#{index['sha256']}",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{field}: expected a manifest by fcmae data shard, got {error!r}: {manifest}. "
            "Shard the images anew."
        ) from error


def _existing(path: str, field: str) -> str:
    if not os.path.isfile(path):
        raise InputError(f"{field}: expected a shard, got no such file: {path}. Check the path.")
    return path
