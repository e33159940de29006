"""Shards at URLs: the images of the same shards on a disk, from any step, whatever the server does."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from served import Server, served

from fcmae import cli
from fcmae.config import DataConfig
from fcmae.data import Batch, open_dataset, pretrain_transform, training_batches
from fcmae.data.sources import remote as remote_module
from fcmae.data.sources.remote import ATTEMPTS, RemoteFiles
from fcmae.errors import InputError

# The server's thread: Python 3.12 warns of forks beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SHARDS = [f"shard-{number:06}.tar" for number in range(4)]
PATTERN = "shard-{000000..000003}.tar"


@pytest.fixture
def folder(make_folder, tmp_path: Path) -> Path:
    """Twelve PNGs in four shards of three, with classes."""
    images = make_folder({"a": 6, "b": 6})
    options = ["--format", "png", "--shard-size", "0.015"]
    assert cli.main(["data", "shard", str(images), str(tmp_path / "out"), *options]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == SHARDS
    return tmp_path / "out"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with served(folder) as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those between attempts, which take no time."""
    taken: list[float] = []
    monkeypatch.setattr(remote_module, "sleep", taken.append)
    return taken


def config_of(root: Path | str, cache: Path, **options) -> DataConfig:
    fields = {"source": "shards", "image_size": 32, "workers": 0, "shuffle_buffer": 4, **options}
    return DataConfig(root=str(root), cache_dir=str(cache), **fields)


def batches(config: DataConfig, **options) -> list[Batch]:
    dataset = open_dataset(config, split="all", labelled=False)
    options = {"batch_size": 4, "seed": 0, "stop": 8, "workers": 0, **options}
    return list(training_batches(dataset, pretrain_transform(config), **options))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    assert all(torch.equal(one.images, other.images) for one, other in zip(left, right, strict=True))


def test_urls_give_the_images_and_the_order_of_files(folder: Path, server: Server, tmp_path: Path):
    local = config_of(folder, tmp_path / "unused")
    for root in (server.url, f"{server.url}/manifest.json", f"{server.url}/{PATTERN}"):
        config = config_of(root, tmp_path / "cache")
        assert_equal(batches(config), batches(local))
        dataset = open_dataset(config, split="all", labelled=True)
        assert dataset.classes == (("0", "1") if "{" in root else ("a", "b"))
        assert dataset.labels == [0] * 6 + [1] * 6
        assert dataset.name_of(4).startswith(f"{server.url}/{SHARDS[1]}[byte ")
        val = open_dataset(config_of(root, tmp_path / "cache", val_fraction=0.5), split="val", labelled=True)
        assert len(val) == 6 and val.window is not None and len(val.window.shard) == 6
    assert not (tmp_path / "unused").exists()
    # One cache for all of it; a pattern knows no checksums, and so not the copies of the manifest's files.
    assert all(server.requests[name] == 2 for name in SHARDS)


def test_a_run_goes_on_from_any_batch_with_an_empty_cache(server: Server, tmp_path: Path):
    whole = batches(config_of(server.url, tmp_path / "whole"))
    for start, workers in ((1, 0), (3, 2), (7, 1)):
        cache = tmp_path / f"cache{start}"
        assert_equal(batches(config_of(server.url, cache), start=start, workers=workers), whole[start:])
    other = batches(config_of(server.url, tmp_path / "whole", shuffle_buffer=5))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(whole, other, strict=True))


def test_two_processes_share_the_batches_and_the_copies(server: Server, tmp_path: Path):
    whole = batches(config_of(server.url, tmp_path / "whole"))
    server.requests.clear()

    def rank_of(rank: int) -> list[Batch]:
        config = config_of(server.url, tmp_path / "shared")
        return batches(config, batch_size=2, rank=rank, world_size=2, workers=rank)

    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(rank_of, range(2)))
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[number].images for rank in ranks]), batch.images)
    assert {name: server.requests[name] for name in SHARDS} == dict.fromkeys(SHARDS, 1)


def test_the_manifests_index_spares_reading_the_shards_first(
    folder: Path, server: Server, tmp_path: Path, pauses
):
    def opened(root: str) -> list[str]:
        server.requests.clear()
        open_dataset(config_of(root, tmp_path / "cache"), split="all", labelled=False)
        return sorted(server.requests.elements())

    assert opened(server.url) == ["index.npz", "manifest.json"]
    assert opened(server.url) == ["manifest.json"]
    assert opened(f"{server.url}/{PATTERN}") == SHARDS  # once
    assert opened(f"{server.url}/{PATTERN}") == []
    (folder / "index.npz").write_bytes(b"another")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"index\.npz, got: another file than its manifest names, in 5 att"):
        opened(server.url)
    del manifest["index"]  # of an earlier version
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert opened(server.url) == ["manifest.json", *SHARDS]


def test_copies_beyond_the_limit_go_and_the_images_stay(server: Server, tmp_path: Path, folder: Path):
    whole = batches(config_of(server.url, tmp_path / "whole", shuffle_buffer=1))
    largest = max((folder / name).stat().st_size for name in SHARDS)
    cache, limit = tmp_path / "small", 3.5 * largest
    server.requests.clear()
    for workers in (0, 2):
        config = config_of(server.url, cache, shuffle_buffer=1, cache_gb=limit / 1e9)
        assert_equal(batches(config, workers=workers), whole)
        assert sum(path.stat().st_size for path in cache.glob("*.copy")) <= limit
    assert sum(server.requests[name] for name in SHARDS) > len(SHARDS)
    with pytest.raises(InputError, match=r"data\.cache_gb: expected at least .* for a shuffle buffer of 4"):
        batches(config_of(server.url, cache, cache_gb=limit / 1e9))


def test_passing_faults_cost_another_attempt(
    server: Server, tmp_path: Path, pauses: list[float], monkeypatch
):
    whole = batches(config_of(server.url, tmp_path / "whole"))
    monkeypatch.setattr(remote_module, "SILENCE", 0.2)
    server.faults.update({SHARDS[0]: ["cut", 503], SHARDS[2]: ["silent", 429], "manifest.json": [500]})
    assert_equal(batches(config_of(server.url, tmp_path / "cache")), whole)
    assert all(not faults for faults in server.faults.values()) and sorted(set(pauses)) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("fault", "attempts", "part"),
    [
        ("cut", ATTEMPTS, r"got: \d+ of \d+ bytes, in 5 attempts\."),
        (503, ATTEMPTS, r"got: HTTP 503 Service Unavailable, in 5 attempts\."),
        (404, 1, r"got: HTTP 404 Not Found, in 1 attempt\."),
        ("other", ATTEMPTS, r"got: another file than its manifest names, in 5 attempts\."),
        ("changed", 1, r"got: \d+ bytes, \d+ when its index was made, in 1 attempt\."),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_lasting_faults_end_in_a_line_that_names_the_shard(
    server: Server, folder: Path, tmp_path: Path, pauses, fault, attempts: int, part: str, workers: int
):
    config = config_of(server.url, tmp_path / "cache")
    dataset = open_dataset(config, split="all", labelled=False)
    dataset.expect = lambda indices: None  # type: ignore[method-assign] - only the readers' attempts count
    if fault == "other":
        (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())
    elif fault == "changed":
        with (folder / SHARDS[1]).open("ab") as file:
            file.write(b"\0" * 512)
    else:
        server.faults[SHARDS[1]] = [fault] * 99
    with pytest.raises(InputError, match=part) as caught:
        options = {"batch_size": 12, "seed": 0, "stop": 1, "workers": workers}
        list(training_batches(dataset, pretrain_transform(config), **options))
    assert f"data.root: expected to read {server.url}/{SHARDS[1]}, got" in str(caught.value)
    assert "\n" not in str(caught.value) and server.requests[SHARDS[1]] == attempts
    assert not list((tmp_path / "cache").glob("*.part"))


def test_statistics_end_at_a_lasting_fault(server: Server, tmp_path: Path, pauses, capsys):
    server.faults[SHARDS[1]] = [404]
    options = ["--source", "shards", "--cache-dir", str(tmp_path / "cache")]
    assert cli.main(["data", "stats", server.url, *options]) == 2
    error = capsys.readouterr().err
    assert f"{SHARDS[1]}, got: HTTP 404" in error and error.count("\n") == 1
    assert cli.main(["data", "stats", server.url, *options]) == 0
    assert "12 images read, 0 unreadable, of 12" in capsys.readouterr().out


def test_damaged_members_and_shards_train_on_and_are_named(folder: Path, server: Server, tmp_path: Path):
    dataset = open_dataset(config_of(folder, tmp_path), split="all", labelled=False)
    offset = int(dataset.name_of(4).partition("[byte ")[2].rstrip("]"))
    damaged = bytearray((folder / SHARDS[1]).read_bytes())
    damaged[offset + 40 : offset + 440] = b"\0" * 400
    (folder / SHARDS[1]).write_bytes(damaged)
    (folder / SHARDS[3]).write_bytes((folder / SHARDS[3]).read_bytes()[:6000])
    found = batches(config_of(f"{server.url}/{PATTERN}", tmp_path / "cache"))
    assert all(len(batch.images) == 4 for batch in found)
    named = {line.partition(": ")[0] for batch in found for line in batch.bad}
    assert f"{server.url}/{SHARDS[1]}/000000004_04.png" in named and f"{server.url}/{SHARDS[3]}" in named
    again = batches(config_of(f"{server.url}/{PATTERN}", tmp_path / "cache2"), start=2, workers=1)
    assert_equal(again, found[2:])
    assert [batch.bad for batch in again] == [batch.bad for batch in found[2:]]


def test_commands_write_shards_too(folder: Path, tmp_path: Path, pauses):
    whole = batches(config_of(folder, tmp_path))
    pattern = f"pipe:cat {folder}/{PATTERN}"
    assert_equal(batches(config_of(pattern, tmp_path / "cache")), whole)
    with pytest.raises(InputError, match=r"to read pipe:false shard-0\.tar, got: .*exit 1.* 5 attempts"):
        batches(config_of("pipe:false shard-{0..1}.tar", tmp_path / "cache"))


def test_expected_files_are_copied_in_the_background(folder: Path, server: Server, tmp_path: Path):
    files = RemoteFiles(tmp_path / "cache", limit=10**9)
    server.faults["gone"] = [404]
    for name in ("gone", *SHARDS[:2], *SHARDS[:2]):
        files.expect(f"{server.url}/{name}")
    deadline = time.monotonic() + 20
    while len(list(files.folder.glob("*.copy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    for name in SHARDS[:2]:
        with files.open(f"{server.url}/{name}") as file:
            assert file.read() == (folder / name).read_bytes()
    assert {name: server.requests[name] for name in ("gone", *SHARDS)} == {
        "gone": 1, SHARDS[0]: 1, SHARDS[1]: 1, SHARDS[2]: 0, SHARDS[3]: 0
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(files)).folder == files.folder


def test_every_shard_is_expected_before_it_is_read(server: Server, tmp_path: Path, monkeypatch):
    calls: list[tuple[str, str]] = []
    for name in ("expect", "open"):
        real = getattr(RemoteFiles, name)

        def noted(self, url: str, *, size: int | None = None, name=name, real=real):
            calls.append((name, url))
            return real(self, url, size=size)

        monkeypatch.setattr(RemoteFiles, name, noted)
    batches(config_of(server.url, tmp_path / "cache", shuffle_buffer=1), batch_size=1, stop=12)
    firsts = {url: calls.index(("expect", url)) for name, url in calls if name == "expect"}
    assert len(firsts) == len(SHARDS)
    assert all(calls.index(("open", url)) > first for url, first in firsts.items())
    assert calls.index(("open", min(firsts, key=firsts.__getitem__))) < max(firsts.values())


def test_a_copy_that_was_cut_off_is_made_anew(folder: Path, server: Server, tmp_path: Path):
    files = RemoteFiles(tmp_path / "cache", limit=10**9)
    url, size = f"{server.url}/{SHARDS[0]}", os.path.getsize(folder / SHARDS[0])
    files.open(url, size=size).close()
    (copy,) = files.folder.glob("*.copy")
    copy.write_bytes(b"")  # as after a crash of the machine
    copy.with_suffix(".part").write_bytes(b"as after a kill")
    with files.open(url, size=size) as file:
        assert len(file.read()) == size and server.requests[SHARDS[0]] == 2
    assert not list(files.folder.glob("*.part"))


def test_a_cache_that_cannot_be_written_ends_in_one_line(server: Server, tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"data\.cache_dir: expected to write to .*file, got: ") as caught:
        batches(config_of(server.url, tmp_path / "file"))
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    if Path("/dev/full").exists():
        monkeypatch.setattr(RemoteFiles, "_path_of", lambda *_: Path("/dev/full"))
        monkeypatch.setattr(Path, "with_suffix", lambda path, _: path)
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(InputError, match=r"data\.cache_dir: .* got: No space left on device"):
            RemoteFiles(tmp_path / "cache", limit=1).read(f"{server.url}/{SHARDS[0]}")
