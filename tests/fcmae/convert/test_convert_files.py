"""Reading refuses what is no checkpoint, in one line; writing is all or nothing."""

import argparse
import fractions
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from fcmae.convert.files import (
    checkpoints_of,
    newest_checkpoint,
    read_checkpoint,
    read_newest_checkpoint,
    write_weights,
)
from fcmae.errors import InputError

WEIGHTS = {"stem.0.weight": torch.arange(3000, dtype=torch.float32)}


class RunsCode:
    """What a hostile pickle holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/fcmae-code-was-run"),)


def torch_bytes(content: Any, path: Path, **options: Any) -> bytes:
    torch.save(content, path, **options)
    return path.read_bytes()


def zip_bytes(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights here")
    return path.read_bytes()


def torchscript_bytes(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"constants.pkl": pickle.dumps(()), "data.pkl": b"", "version": b"3\n"}.items():
            archive.writestr(f"model/{name}", content)
    return path.read_bytes()


BAD_FILES: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "empty": ("a.pt", lambda p: b"", "an empty file"),
    "html": ("a.pt", lambda p: b"\n<!DOCTYPE html><html><body>404", "a web page"),
    "html named safetensors": ("a.safetensors", lambda p: b"<html>Sign in</html>", "a web page"),
    "lfs": ("a.pt", lambda p: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "text": ("a.pt", lambda p: b"hello world", "no checkpoint"),
    "png": ("a.pth", lambda p: b"\x89PNG\r\n\x1a\n" + bytes(64), "no checkpoint"),
    "zip": ("a.pt", zip_bytes, "checkpoint"),
    "torchscript": ("a.pt", torchscript_bytes, "TorchScript"),
    "truncated": ("a.pt", lambda p: torch_bytes(WEIGHTS, p)[:5000], "a truncated checkpoint"),
    "barely there": ("a.pt", lambda p: torch_bytes(WEIGHTS, p)[:60], "a truncated checkpoint"),
    "old format truncated": (
        "a.pt",
        lambda p: torch_bytes(WEIGHTS, p, _use_new_zipfile_serialization=False)[:5000],
        "truncated or damaged",
    ),
    "namespace of others": (
        "a.pt",
        lambda p: torch_bytes({"args": argparse.Namespace(out=fractions.Fraction(1, 3))}, p),
        "objects other than tensors and plain data (fractions.Fraction)",
    ),
    "hostile pickle": ("a.pt", lambda p: pickle.dumps(RunsCode()), "objects other than tensors"),
    "tensor": ("a.pt", lambda p: torch_bytes(torch.zeros(3), p), "a saved Tensor"),
    "safetensors truncated": ("a.safetensors", lambda p: safetensors.torch.save(WEIGHTS)[:500], "truncated"),
    "safetensors text": ("a.safetensors", lambda p: b"hello world, here are some weights", "foreign"),
}


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_refused_in_one_line_that_names_it(kind: str, mmap: bool, tmp_path: Path) -> None:
    name, make, what = BAD_FILES[kind]
    path = tmp_path / name
    path.write_bytes(make(tmp_path / "scratch"))
    with pytest.raises(InputError) as refused:
        read_checkpoint(path, mmap=mmap)
    message = str(refused.value)
    assert what in message and str(path) in message and "\n" not in message
    assert not Path("/tmp/fcmae-code-was-run").exists()


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got nothing at .*absent\.pt"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="got a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_reads_what_torch_saved(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(
        {"step": 3, "config": {"lr": 0.1}, "model": WEIGHTS}, path, _use_new_zipfile_serialization=zipped
    )
    content = read_checkpoint(path)
    assert content["step"] == 3 and content["config"] == {"lr": 0.1}
    assert torch.equal(content["model"]["stem.0.weight"], WEIGHTS["stem.0.weight"])


def test_options_that_the_original_saves_are_read_and_nothing_else_stays_allowed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-799.pth"
    torch.save({"args": argparse.Namespace(blr=1.5e-4, dims=[1, 2]), "model": WEIGHTS}, path)
    assert read_checkpoint(path)["args"].blr == 1.5e-4
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_mapped_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for zipped in (True, False):  # the old format cannot be mapped
        torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=zipped)
        read = read_checkpoint(path, mmap=True)["model"]["stem.0.weight"]
        assert torch.equal(read, WEIGHTS["stem.0.weight"])


def test_newest_checkpoint_goes_by_step_in_run_or_checkpoints_folder(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step_00000900.pt", "step_100000000.pt", "step_00001000.pt", "step_2.pt.tmp", "step_x.pt"):
        (folder / name).touch()
    assert newest_checkpoint(tmp_path) == newest_checkpoint(folder) == folder / "step_100000000.pt"
    assert [path.name for path in checkpoints_of(tmp_path)][1:] == ["step_00001000.pt", "step_00000900.pt"]


def test_truncated_checkpoint_is_named_and_the_previous_used(tmp_path: Path) -> None:
    assert read_newest_checkpoint(tmp_path) is None
    good, cut = tmp_path / "step_00000001.pt", tmp_path / "step_00000002.pt"
    torch.save({"step": 1, "model": WEIGHTS}, good)
    cut.write_bytes(good.read_bytes()[:4000])
    newest = read_newest_checkpoint(tmp_path)
    assert newest is not None
    path, content, refused = newest
    assert path == good and content["step"] == 1
    assert len(refused) == 1 and "truncated" in refused[0] and cut.name in refused[0]
    good.unlink()
    with pytest.raises(InputError, match="1 damaged"):
        read_newest_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_written_weights_are_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"weights{suffix}"
    transposed = {"a": torch.arange(6.0).view(2, 3).T}  # safetensors takes only contiguous tensors
    write_weights(path, transposed, metadata={"by": "test"}, force=False)
    content = read_checkpoint(path)
    assert torch.equal((content if suffix == ".safetensors" else content["state_dict"])["a"], transposed["a"])
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"by": "test"}
    else:
        assert content["metadata"] == {"by": "test"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("precious")
    with pytest.raises(InputError, match="--force"):
        write_weights(path, WEIGHTS, metadata={}, force=False)
    assert path.read_text() == "precious"
    write_weights(path, WEIGHTS, metadata={}, force=True)
    assert read_checkpoint(path)["state_dict"].keys() == WEIGHTS.keys()


def test_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("precious")

    def full_disk(content: Any, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_weights(path, WEIGHTS, metadata={}, force=True)
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]


def test_unwritable_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.safetensors or \.pth"):
        write_weights(tmp_path / "weights.bin", WEIGHTS, metadata={}, force=False)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected to write"):
        write_weights(tmp_path / "file" / "weights.pth", WEIGHTS, metadata={}, force=False)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(InputError, match="got a folder"):
        write_weights(tmp_path / "folder.pth", WEIGHTS, metadata={}, force=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_written_files_have_the_mode_of_any_new_file(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    path = tmp_path / f"a{suffix}"
    write_weights(path, WEIGHTS, metadata={}, force=False)
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
