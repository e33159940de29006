"""Shards: what is written, that batches from them are exact, and what damage does."""

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from image_files import write_image
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from fcmae import cli
from fcmae.config import DataConfig
from fcmae.data import Batch, ShardDataset, open_dataset, pretrain_transform, training_batches
from fcmae.data.sources import shard_index
from fcmae.errors import InputError


def shard(root: Path, out: Path, *options: object) -> dict:
    assert cli.main(["data", "shard", str(root), str(out), *map(str, options)]) == 0
    return json.loads((out / "manifest.json").read_text())


def config_of(root: Path | str, **options) -> DataConfig:
    return DataConfig(**{"source": "shards", "root": str(root), "image_size": 32, "workers": 0, **options})


def open_all(root: Path | str, *, labelled: bool = False, **options):
    return open_dataset(config_of(root, **options), split="all", labelled=labelled)


def batches(root: Path, **options) -> list[Batch]:
    config = config_of(root)
    dataset = open_dataset(config, split="all", labelled=False)
    options = {"batch_size": 3, "seed": 0, "stop": 9, "workers": 0, **options}
    return list(training_batches(dataset, pretrain_transform(config), **options))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one.images, other.images) and one.bad == other.bad


def rewrite(path: Path, change) -> None:
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


@pytest.fixture
def folder(make_folder) -> Path:
    return make_folder({"a": 4, "b": 5})


@pytest.fixture
def sharded(folder: Path, tmp_path: Path) -> Path:
    """Nine PNGs as they were, in three shards of three, with classes."""
    shard(folder, tmp_path / "out", "--format", "png", "--shard-size", 0.015)
    return tmp_path / "out"


def test_manifest_checksums_and_samples(folder: Path, sharded: Path):
    manifest = json.loads((sharded / "manifest.json").read_text())
    assert manifest["classes"] == ["a", "b"] and manifest["samples"] == 9 and manifest["bad"] == []
    assert [entry["samples"] for entry in manifest["shards"]] == [3, 3, 3]
    for entry in manifest["shards"]:
        content = (sharded / entry["name"]).read_bytes()
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=sharded).returncode == 0
    assert not list(sharded.glob(".*tmp"))

    found = []
    for path in sorted(sharded.glob("*.tar")):
        with path.open("rb") as file:
            found += group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
    assert [sample["__key__"] for sample in found[:5]] == [
        "000000000_00", "000000001_01", "000000002_02", "000000003_03", "000000004_00"
    ]  # fmt: skip
    assert [sample["cls"] for sample in found] == [b"0"] * 4 + [b"1"] * 5
    assert found[4]["png"] == (folder / "b" / "00.png").read_bytes()


def test_shards_give_the_images_of_the_folder(folder: Path, sharded: Path):
    files = open_dataset(DataConfig(root=str(folder), image_size=32), split="all", labelled=True)
    for root in (sharded, sharded / "shard-{000000..000002}.tar"):
        dataset = open_all(root, labelled=True)
        assert len(dataset) == 9 and dataset.labels == files.labels
        assert dataset.classes == (("a", "b") if root == sharded else ("0", "1"))
        assert all(torch.equal(dataset.load(index), files.load(index)) for index in range(9))
    assert dataset.name_of(4) == f"{sharded}/shard-000001.tar[byte {dataset._index.offset[4]}]"
    assert len(open_all(sharded / "shard-000001.tar")) == 3
    train = open_dataset(config_of(sharded, val_fraction=0.4), split="train", labelled=True)
    val = open_dataset(config_of(sharded, val_root=str(sharded)), split="val", labelled=True)
    assert 4 < len(train) < 9 and len(val) == 9


def test_batches_are_exact_from_any_start_and_with_any_workers(folder: Path, sharded: Path):
    whole = batches(sharded)
    assert_equal(batches(sharded, start=4, workers=2), whole[4:])
    files = open_dataset(DataConfig(root=str(folder), image_size=32), split="all", labelled=False)
    options = {"batch_size": 3, "seed": 0, "stop": 9, "workers": 0}
    assert_equal(whole, list(training_batches(files, pretrain_transform(config_of(sharded)), **options)))


def test_bytes_depend_on_neither_time_nor_workers(folder: Path, tmp_path: Path, capsys):
    options = ("--short-side", 20, "--quality", 80)
    first = shard(folder, tmp_path / "one", *options)
    assert "9 images in 1 shards" in capsys.readouterr().out
    second = shard(folder, tmp_path / "two", *options, "--workers", 2)
    assert first == second


def test_sizes_and_formats(tmp_path: Path):
    root = tmp_path / "images"
    write_image(root / "wide.png", 1, (90, 40))
    write_image(root / "small.png", 2, (30, 18))
    write_image(root / "photo.jpg", 3, (200, 160))
    write_image(root / "tiny.jpg", 3, (16, 14))
    Image.new("RGBA", (50, 60), (255, 0, 0, 0)).save(root / "transparent.png")
    Image.fromarray(np.full((50, 60), 50000, dtype=np.uint16)).save(root / "deep.png")
    Image.new("P", (50, 60), 3).save(root / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (60, 30)).save(root / "turned.jpg", exif=exif)
    np.save(root / "array.npy", np.zeros((8, 8), dtype=np.uint8))
    (root / "broken.png").write_bytes(b"\x89PNG")

    def written(*options: object) -> tuple[dict, dict[str, Image.Image], dict[str, bytes]]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        manifest = shard(root, out, *options)
        with tarfile.open(out / "shard-000000.tar") as tar:
            contents = {name.split("_", 1)[1]: tar.extractfile(name).read() for name in tar.getnames()}
        assert manifest["classes"] is None
        with tarfile.open(out / "shard-000000.tar") as tar:
            pictures = {
                name.split("_", 1)[1]: Image.open(tar.extractfile(name)).copy() for name in tar.getnames()
            }
        return manifest, pictures, contents

    manifest, pictures, contents = written("--short-side", 20)
    assert [line.partition(": ")[0].rpartition("/")[2] for line in manifest["bad"]] == [
        "array.npy", "broken.png", "deep.png"
    ]  # fmt: skip
    assert "take --format png" in manifest["bad"][2]
    sizes = {name: picture.size for name, picture in pictures.items()}
    assert (
        sizes["wide.jpg"] == (45, 20) and sizes["photo.jpg"] == (25, 20) and sizes["turned.jpg"] == (20, 40)
    )
    assert sizes["tiny.jpg"] == (16, 14)  # never enlarged
    assert contents["tiny.jpg"] == (root / "tiny.jpg").read_bytes()  # nor encoded twice
    assert min(pictures["transparent.jpg"].getpixel((5, 5))) > 250  # on white
    assert all(picture.mode == "RGB" and picture.format is None for picture in pictures.values())

    manifest, pictures, contents = written("--short-side", 20, "--format", "png")
    assert len(manifest["bad"]) == 2 and pictures["transparent.png"].mode == "RGBA"
    assert np.unique(np.asarray(pictures["deep.png"])).tolist() == [50000] and pictures["deep.png"].size == (
        24,
        20,
    )
    assert contents["small.png"] == (root / "small.png").read_bytes()
    _, _, small = written("--format", "webp", "--quality", 10)
    _, _, large = written("--format", "webp", "--quality", 95)
    assert len(small["wide.webp"]) < len(large["wide.webp"])


def test_a_corrupt_member_trains_on_and_is_named(sharded: Path):
    before = open_all(sharded)
    path, offset = sharded / "shard-000001.tar", int(before._index.offset[4])
    rewrite(path, lambda content: content[: offset + 40] + b"\0" * 400 + content[offset + 440 :])
    found = batches(sharded)
    assert sum(len(batch.images) for batch in found) == 27
    assert {line.partition(": ")[0] for batch in found for line in batch.bad} == {f"{path}/000000004_00.png"}
    assert_equal(batches(sharded, start=3, workers=1), found[3:])


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("cut", ["in a member", "between members", "at the start"])
def test_a_truncated_shard_trains_on_and_is_named(sharded: Path, cut: str, with_manifest: bool):
    dataset = open_all(sharded)
    header = int(dataset._index.offset[4]) - 512
    place = {"in a member": header + 700, "between members": header - 1024, "at the start": 0}[cut]
    path = sharded / "shard-000001.tar"
    rewrite(path, lambda content: content[:place])
    if not with_manifest:
        (sharded / "manifest.json").unlink()
    found = batches(sharded)
    assert all(len(batch.images) == 3 for batch in found)
    named = {line.partition(": ")[0] for batch in found for line in batch.bad}
    assert str(path) in named and all(name.startswith(str(path)) for name in named)
    reason = next(line for batch in found for line in batch.bad if line.startswith(f"{path}: "))
    assert "\n" not in reason and ("expected 3 images, got" in reason) == with_manifest
    assert_equal(batches(sharded, start=5), found[5:])


def test_a_damaged_header_costs_its_sample_only(sharded: Path):
    dataset = open_all(sharded)
    header = int(dataset._index.offset[4]) - 512
    rewrite(
        sharded / "shard-000001.tar",
        lambda content: content[:header] + b"\xff" * 512 + content[header + 512 :],
    )
    after = open_all(sharded)
    assert len(after) == 9  # eight, and the entry that names the shard
    with pytest.raises(Exception, match=r"shard-000001\.tar: expected 3 images, got 2: damaged at byte"):
        [after.load(index) for index in range(9)]
    names = [after.name_of(index) for index in range(9)]
    assert dataset.name_of(4) not in names and dataset.name_of(5) in names


def test_the_index_is_built_once_and_anew_when_a_shard_changes(sharded: Path, monkeypatch):
    first = open_all(sharded)
    (cache,) = sharded.glob(".index-*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "_scan", None)  # nothing is scanned again
        again = open_all(sharded)
    assert np.array_equal(first._index.offset, again._index.offset)
    cache.write_bytes(b"damaged")
    assert len(open_all(sharded)) == 9
    (sharded / "shard-000001.tar").write_bytes((sharded / "shard-000000.tar").read_bytes())
    assert torch.equal(open_all(sharded).load(3), first.load(0))


def test_shards_of_others(tmp_path: Path):
    """Several images and texts a sample, folders in keys, long names, dots: as webdataset reads them."""
    image, long = np.zeros((8, 8, 3), dtype=np.uint8), "x" * 120
    with webdataset.TarWriter(str(tmp_path / "a.tar"), format="PAX_FORMAT") as writer:
        writer.write({"__key__": "n1/a", "jpg": image, "json": {"a": 1}, "seg.png": image, "txt": "text"})
        writer.write({"__key__": f"n1/{long}", "jpeg": image, "cls": 3})
        writer.write({"__key__": "n1/none", "txt": "no image"})
    dataset = open_all(tmp_path)
    assert isinstance(dataset, ShardDataset) and len(dataset) == 2
    assert [dataset.load(index).shape for index in range(2)] == [(3, 8, 8)] * 2
    with pytest.raises(InputError, match=r"expected a class \(\.cls\) with every image, got 1 of 2 without"):
        open_all(tmp_path, labelled=True)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["gone", "out"], "DIR: expected a folder of images, got no such folder: gone"),
        (["images", "images"], "OUT: expected a new or empty folder, got files in"),
        (["images", "out", "--short-side", "0"], "--short-side: expected at least 1, got 0."),
        (["images", "out", "--quality", "101"], "--quality: expected 1 to 100, got 101."),
        (["images", "out", "--shard-size", "0"], "--shard-size: expected more than 0, got 0."),
        (["images", "out", "--format", "gif"], "invalid choice"),
        (["images"], "required: OUT"),
    ],
)
def test_refusals_of_the_command(
    make_folder, tmp_path: Path, monkeypatch, capsys, argv: list[str], part: str
):
    make_folder({"a": 1})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "shard", *argv]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1


def test_refusals_of_the_source(sharded: Path, tmp_path: Path):
    def check(root: Path | str, part: str, **options) -> None:
        with pytest.raises(InputError, match=part) as caught:
            open_all(root, **options)
        assert "\n" not in str(caught.value)

    check(sharded, r"data\.shuffle_buffer: expected 0 or more with data\.source=shards", shuffle_buffer=-1)
    check(tmp_path / "s-{0..2}.tar", r"expected a shard, got no such file: .*s-0\.tar")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", r"expected manifest\.json or \.tar files")
    (sharded / "shard-000002.tar").unlink()
    check(sharded, r"expected a shard, got no such file: .*shard-000002\.tar")
    (sharded / "manifest.json").write_text("{}")
    check(sharded, r"expected a manifest by fcmae data shard, got KeyError")
    check(sharded, r"data\.labels: expected none with data\.source=shards", labels="l.npy")


@pytest.mark.parametrize("size", [2**40, 2**62, 2**70])
def test_a_header_that_names_any_size(tmp_path: Path, size: int):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.png", "1.png"):
            write_image(tmp_path / "images" / name, 0)
            tar.add(tmp_path / "images" / name, name)
    damaged = tarfile.TarInfo("2.png")
    damaged.size = size
    with (tmp_path / "a.tar").open("r+b") as file, tarfile.open(fileobj=file) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
        file.seek(end)
        file.write(damaged.tobuf(tarfile.GNU_FORMAT))
    batch = batches(tmp_path, batch_size=8, stop=1)[0]
    assert len(batch.images) == 8 and batch.bad


@pytest.mark.parametrize("pattern", ["a-{000..003.tar", "a-000}.tar"])
def test_half_a_brace_is_refused(tmp_path: Path, pattern: str):
    with pytest.raises(InputError, match=r"data\.root: expected a shard, or a pattern .*Close it\."):
        open_all(tmp_path / pattern)


def test_a_shard_without_images_is_refused(tmp_path: Path):
    tarfile.open(tmp_path / "a.tar", "w").close()
    with pytest.raises(InputError, match=r"data\.root: expected at least one image, got none in"):
        open_all(tmp_path)


def test_a_shard_of_any_name_is_found(sharded: Path, tmp_path: Path):
    folder = tmp_path / "é [1] {x"
    folder.mkdir()
    (folder / "{0}.tar").write_bytes((sharded / "shard-000000.tar").read_bytes())
    assert len(open_all(folder / "{0}.tar")) == len(open_all(folder)) > 0


def test_statistics_of_shards_are_those_of_the_folder(folder: Path, sharded: Path, tmp_path: Path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for root, source, file in ((folder, "folder", files[0]), (sharded, "shards", files[1])):
        assert cli.main(["data", "stats", str(root), "--source", source, "--json", str(file)]) == 0
    one, other = (json.loads(file.read_text()) for file in files)
    assert one["mean"] == other["mean"] and one["images"] == other["images"] == 9
