"""Pretraining from shards and arrays: exact when interrupted, damaged, or hung."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import run_processes
from served import Server, served
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae import cli
from fcmae.data import ShardDataset
from fcmae.errors import InputError
from fcmae.training.engine.checkpoints import newest_checkpoint
from fcmae.training.pretrain import pretrain

# The server's thread: Python 3.12 warns of forks beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

RNG = np.random.default_rng(0)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twelve JPEGs in several shards, the last of which is cut off."""
    folder, out = tmp_path / "images", tmp_path / "shards"
    folder.mkdir()
    for number in range(12):
        pixels = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg")
    assert cli.main(["data", "shard", str(folder), str(out), "--shard-size", "0.03"]) == 0
    last = max(out.glob("*.tar"))
    last.write_bytes(last.read_bytes()[:6000])
    return out


def test_an_interrupted_run_on_shards_equals_the_whole_one(pretrain_config, shards: Path, monkeypatch):
    data: Any = {"source": "shards", "root": str(shards), "repeats": 2}
    whole = pretrain(pretrain_config("whole", data=data))
    assert events(whole, "bad_image") and "shard-" in str(events(whole, "bad_image")[0])
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        pretrain(pretrain_config("cut", data=data))
    resumed = pretrain(pretrain_config("cut", data={**data, "workers": 2}))
    assert_same_tensors(last_state(resumed)["model"], last_state(whole)["model"])


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with served(shards) as running:
        yield running


def pattern_of(server: Server, shards: Path) -> str:
    """Not the manifest, with which the shard that is cut off would be another than its index says."""
    return f"{server.url}/shard-{{000000..{len(list(shards.glob('*.tar'))) - 1:06}}}.tar"


def test_an_interrupted_run_on_urls_equals_the_whole_one_from_files(
    pretrain_config, shards: Path, server: Server, tmp_path: Path, monkeypatch
):
    def data(root: Path | str, cache: str, **options: Any) -> dict[str, Any]:
        cache_dir = str(tmp_path / cache)
        return {
            "source": "shards",
            "root": str(root),
            "shuffle_buffer": 3,
            "cache_dir": cache_dir,
            **options,
        }

    whole = pretrain(pretrain_config("whole", data=data(shards, "unused")))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt_after(patch, 3)
        pretrain(pretrain_config("cut", data=data(pattern_of(server, shards), "first")))
    name = "shard-000001.tar"
    server.faults[name] = ["cut"]
    resumed = pretrain(pretrain_config("cut", data=data(pattern_of(server, shards), "second", workers=2)))
    assert server.requests[name] == 3  # by the first machine, and twice by the second
    assert_same_tensors(last_state(resumed)["model"], last_state(whole)["model"])
    assert not events(resumed, "other_batches")  # where the copies lie is no matter


def test_two_processes_on_urls_equal_two_on_files(pretrain_config, shards: Path, server: Server):
    runs = {}
    for name, root in (("files", str(shards)), ("urls", pattern_of(server, shards))):
        data = {"source": "shards", "root": root, "shuffle_buffer": 3, "cache_dir": f"{shards}/{name}"}
        config = pretrain_config(name, data=data)
        runs[name] = run_processes(replace(config, run=replace(config.run, devices=2)), 2)
    assert_same_tensors(last_state(runs["urls"])["model"], last_state(runs["files"])["model"])
    assert all(count == 1 for name, count in server.requests.items() if name.endswith(".tar"))


def test_a_server_that_is_gone_leaves_the_last_checkpoint(
    pretrain_config, shards: Path, server: Server, tmp_path: Path
):
    root = pattern_of(server, shards)
    data: Any = {"source": "shards", "root": root, "shuffle_buffer": 3, "workers": 1}
    pretrain(pretrain_config(data={**data, "cache_dir": str(tmp_path / "a")}, steps=2))
    kept = newest_checkpoint(pretrain_config().run.dir)
    server.faults.update({f"shard-{number:06}.tar": [404] * 9 for number in range(9)})
    with pytest.raises(InputError, match=r"data\.root: expected to read http.*shard-.*tar, got: HTTP 404"):
        pretrain(pretrain_config(data={**data, "cache_dir": str(tmp_path / "b")}))
    after = newest_checkpoint(pretrain_config().run.dir)
    assert kept is not None and after is not None and kept[0] == after[0]


def test_satellite_tiles_train(pretrain_config, tmp_path: Path):
    np.save(tmp_path / "tiles.npy", RNG.integers(0, 10000, (6, 12, 70, 70), dtype=np.uint16))
    data: Any = {
        "source": "arrays",
        "root": str(tmp_path / "tiles.npy"),
        "in_chans": 12,
    }
    for option in ({"resize_8_bit": True}, {"transform_on": "device"}):
        run = pretrain(pretrain_config(str(option), data={**data, **option}, steps=2))
        assert len(events(run, "train")) == 2


def test_a_resume_says_what_other_images_it_takes(pretrain_config):
    pretrain(pretrain_config(steps=2))
    pretrain(pretrain_config(steps=3, data={"workers": 1, "timeout": 99.0}))
    run = pretrain(pretrain_config(steps=4, data={"repeats": 2, "crop_scale": (0.5, 1.0)}))
    (line,) = events(run, "other_batches")
    for part in ("data.repeats = 2, before 1", "data.crop_scale = [0.5, 1.0], before [0.2, 1.0]"):
        assert part in line["change"]


def test_a_hung_loader_leaves_the_last_checkpoint(pretrain_config, shards: Path, monkeypatch):
    data: Any = {"source": "shards", "root": str(shards), "workers": 1, "timeout": 3.0}
    pretrain(pretrain_config(data=data, steps=2))
    kept = newest_checkpoint(pretrain_config().run.dir)
    monkeypatch.setattr(ShardDataset, "load", lambda self, index: time.sleep(7))
    with pytest.raises(InputError, match=r"data\.timeout: expected a batch within 3 s, got none .*shard-"):
        pretrain(pretrain_config(data=data))
    after = newest_checkpoint(pretrain_config().run.dir)
    assert kept is not None and after is not None and kept[0] == after[0]
    assert_same_tensors(after[1]["model"], kept[1]["model"])
