"""A checkpoint is whole or not there, and the right one is taken up."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fcmae.config import DataConfig, FCMAEConfig, PretrainConfig, PyramidConfig
from fcmae.config_io import to_dict
from fcmae.errors import InputError
from fcmae.training.engine import checkpoints
from fcmae.training.engine.checkpoints import (
    checkpoint_folder,
    find_start,
    load_checkpoint,
    newest_checkpoint,
    require_same_classes,
    save_checkpoint,
)

CONFIG = to_dict(PretrainConfig())


def save(run_dir: Path, step: int, *, keep: int = 3, kind: str = "pretrain", **extra: Any) -> Path:
    state = {"kind": kind, "config": CONFIG, "model": {"weight": torch.full((64,), float(step))}, **extra}
    return save_checkpoint(checkpoint_folder(run_dir), state, step=step, keep=keep)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def start(run_dir: Path, resume: str = "auto", config: dict[str, Any] = CONFIG) -> checkpoints.Start:
    return find_start(resume, run_dir, kind="pretrain", config=config)


def test_written_and_read_back(tmp_path: Path):
    path = save(tmp_path, 1000)
    assert path == tmp_path / "checkpoints" / "step_00001000.pt"
    state = load_checkpoint(path, kind="pretrain")
    assert (state["format"], state["kind"], state["step"]) == ("fcmae-1", "pretrain", 1000)
    assert torch.equal(state["model"]["weight"], torch.full((64,), 1000.0))


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (9, 10, 100, 1000):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in checkpoint_folder(tmp_path).iterdir()) == [
        "newest.pt",
        "step_00000100.pt",
        "step_00001000.pt",
    ]


def test_newest_points_to_the_last_one_saved(tmp_path: Path):
    for step in (5, 10):
        path = save(tmp_path, step)
        assert (checkpoint_folder(tmp_path) / "newest.pt").resolve() == path.resolve()
        assert load_checkpoint(checkpoint_folder(tmp_path) / "newest.pt")["step"] == step


def test_a_link_left_by_a_killed_run_harms_nothing(tmp_path: Path):
    old = save(tmp_path, 5)
    (checkpoint_folder(tmp_path) / ".newest.pt.tmp").symlink_to(old.name)
    before = old.read_bytes()
    save(tmp_path, 10)
    assert old.read_bytes() == before and start(tmp_path).step == 10


def test_a_flipped_bit_is_refused_by_its_checksum(tmp_path: Path):
    good, damaged = save(tmp_path, 5), save(tmp_path, 10)
    content = bytearray(damaged.read_bytes())
    content[content.index(torch.full((64,), 10.0).numpy().tobytes()) + 100] ^= 1
    damaged.write_bytes(content)
    assert torch.load(damaged, weights_only=True)["step"] == 10  # torch itself does not notice
    found = start(tmp_path)
    assert (found.step, found.path) == (5, good) and "checksum" in found.refused[0]


def test_a_damaged_later_file_does_not_push_out_the_one_just_saved(tmp_path: Path):
    truncate(save(tmp_path, 20))
    save(tmp_path, 10, keep=1)
    assert {path.name for path in checkpoint_folder(tmp_path).glob("step*")} == {
        "step_00000010.pt",
        "step_00000020.pt",
    }
    assert start(tmp_path).step == 10


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos")]
)
@pytest.mark.parametrize("step", [10, 20], ids=["over_the_old_file", "a_new_file"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: Exception
):
    old = save(tmp_path, 10).read_bytes()

    def fail(state: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(
        InputError, match=f"expected to write .*step_000000{step}.pt, got: .*earlier checkpoints"
    ):
        save(tmp_path, step, keep=1)
    names = sorted(path.name for path in checkpoint_folder(tmp_path).iterdir())
    assert names == ["newest.pt", "step_00000010.pt"]
    assert (checkpoint_folder(tmp_path) / "step_00000010.pt").read_bytes() == old


def test_killed_while_writing_leaves_the_old_file_as_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 10)

    def killed(*paths: Any) -> None:
        raise KeyboardInterrupt  # after the bytes are written, before the file has its name

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20)
    assert start(tmp_path).step == 10


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "run").write_text("a file in the folder's place")
    with pytest.raises(InputError, match="expected to write"):
        save(tmp_path / "run", 1)


def test_auto_takes_the_newest_and_starts_anew_without_any(tmp_path: Path):
    assert start(tmp_path).step == 0
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    assert (start(tmp_path).step, start(tmp_path).path, start(tmp_path).refused) == (10, newest, ())


def test_auto_refuses_a_truncated_one_by_name_and_takes_the_one_before(tmp_path: Path):
    good, damaged = save(tmp_path, 5), save(tmp_path, 10)
    truncate(damaged)
    found = start(tmp_path)
    assert (found.step, found.path) == (5, good)
    assert len(found.refused) == 1
    assert str(damaged) in found.refused[0]
    assert "truncated" in found.refused[0]


def test_auto_does_not_start_anew_over_checkpoints_that_are_all_damaged(tmp_path: Path):
    truncate(save(tmp_path, 5))
    with pytest.raises(InputError, match=r"step_00000005\.pt"):
        start(tmp_path)


def test_none_refuses_a_folder_with_checkpoints(tmp_path: Path):
    assert start(tmp_path, "none").step == 0
    save(tmp_path, 5)
    with pytest.raises(InputError, match=r"without checkpoints for --resume none, got .*step_00000005\.pt"):
        start(tmp_path, "none")


def test_a_path_is_taken_up_unless_the_folder_has_a_later_one(tmp_path: Path):
    first, later = save(tmp_path / "a", 5), save(tmp_path / "a", 10)
    assert start(tmp_path / "b", str(first)).step == 5
    assert start(tmp_path / "a", str(later)).step == 10
    with pytest.raises(InputError, match=r"no later checkpoint in run\.dir, got .*step_00000010\.pt"):
        start(tmp_path / "a", str(first))


def test_checkpoints_of_another_kind_or_origin_are_refused(tmp_path: Path):
    save(tmp_path, 5, kind="finetune")
    with pytest.raises(InputError, match="kind pretrain, got finetune"):
        start(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="format fcmae-1, got None"):
        load_checkpoint(tmp_path / "foreign.pt")
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_changed_model_is_refused_by_the_names_of_its_fields(tmp_path: Path):
    save(tmp_path, 5)
    changed = PretrainConfig(
        data=DataConfig(source="digits", in_chans=1), model=FCMAEConfig(decoder_dim=16, backend="reference")
    )
    with pytest.raises(
        InputError, match=r"model\.decoder_dim = 512 \(got 16\), data\.in_chans = 3 \(got 1\)"
    ) as caught:
        start(tmp_path, config=to_dict(changed))
    assert "backend" not in str(caught.value)


def test_a_changed_optimiser_length_or_place_is_allowed(tmp_path: Path):
    save(tmp_path, 5)
    config = to_dict(PretrainConfig())
    config["train"] |= {"steps": 7, "base_lr": 1.0}
    config["run"] |= {"dir": "elsewhere"}
    config["model"] |= {"backend": "reference"}
    assert start(tmp_path, config=config).step == 5


def test_other_classes_are_refused(tmp_path: Path):
    save(tmp_path, 5, classes=["cat", "dog"])
    found = start(tmp_path)
    require_same_classes(found, ("cat", "dog"))
    with pytest.raises(InputError, match="2 classes"):
        require_same_classes(found, ("dog", "cat"))


def test_models_of_another_kind_have_fields_of_their_own(tmp_path: Path):
    config = {**CONFIG, "model": to_dict(PyramidConfig())}
    save_checkpoint(checkpoint_folder(tmp_path), {"kind": "detect", "config": config}, step=1, keep=1)
    assert find_start("auto", tmp_path, kind="detect", config=config).step == 1
    other = {**config, "model": to_dict(PyramidConfig(window_size=7))}
    with pytest.raises(InputError, match=r"model\.window_size = null \(got 7\)"):
        find_start("auto", tmp_path, kind="detect", config=other)
