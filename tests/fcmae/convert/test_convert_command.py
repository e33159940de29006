"""The command: a run folder becomes verified dense weights, and nothing is lost on the way."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from fcmae import cli
from fcmae.convert.command import convert_checkpoint, main
from fcmae.convert.families import CONVNEXTV2
from fcmae.convert.files import read_checkpoint
from fcmae.convert.networks.convnextv2 import Architecture
from fcmae.convert.source import open_source
from fcmae.convert.verify.convnextv2 import compare_outputs
from fcmae.convert.verify.differences import StageDifference, check_differences
from fcmae.errors import InputError

ROOT = Path(__file__).parents[3]
TIMM = CONVNEXTV2.formats["timm"]
SIZES = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
NAME = "convnextv2_atto_timm.safetensors"


def test_run_folder_becomes_timm_weights_beside_its_checkpoints(small_run: Path) -> None:
    lines: list[str] = []
    report = convert_checkpoint(small_run, log=lines.append)
    assert report.out == small_run / NAME and report.checkpoint.name == "step_00000010.pt"
    model = timm.create_model("convnextv2_atto", **SIZES)
    loaded = model.load_state_dict(read_checkpoint(report.out), strict=False)
    assert not loaded.unexpected_keys and set(loaded.missing_keys) == set(report.missing)
    assert len(report.differences) == 8 and all(0 < d.relative < 1e-5 for d in report.differences)
    printed = "\n".join(lines)
    assert (
        "largest difference" in printed
        and "verified" in printed
        and 'create_model("convnextv2_atto"' in printed
    )


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step_00000009.pt"])
def test_other_ways_to_name_a_run_write_to_the_same_place(name: str, small_run: Path) -> None:
    report = convert_checkpoint(small_run / name, verify=False, log=lambda line: None)
    assert report.out == small_run / NAME and report.differences == []


def test_truncated_checkpoint_is_named_and_the_previous_used(
    small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = small_run / "checkpoints" / "step_00000010.pt"
    newest.write_bytes(newest.read_bytes()[:10_000])
    assert main([str(small_run), "--no-verify"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("refused") and "truncated" in first and "step_00000010.pt" in first
    assert "step_00000009.pt" in second


def test_existing_out_is_refused_without_force(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_run / NAME).write_text("precious")
    assert cli.main(["convert", str(small_run), "--no-verify"]) == 2
    captured = capsys.readouterr()
    assert "--force" in captured.err and captured.err.count("\n") == 1
    assert (small_run / NAME).read_text() == "precious"
    assert cli.main(["convert", str(small_run), "--no-verify", "--force"]) == 0
    assert len(read_checkpoint(small_run / NAME)) > 50


def test_checkpoint_is_never_its_own_output(tmp_path: Path, small_checkpoint: dict[str, Any]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small_checkpoint, path)
    with pytest.raises(InputError, match="another file than the checkpoint"):
        convert_checkpoint(path, path, force=True)
    assert read_checkpoint(path)["step"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CKPT", "--sauce", "timm"], "unrecognized arguments: --sauce timm"),
        (["CKPT", "--source", "spark"], "argument --source: invalid choice: 'spark'"),
        ([], "required: CKPT"),
    ],
)
def test_bad_flags_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected step_\*\.pt in"):
        convert_checkpoint(tmp_path)


def test_script_is_the_command(small_run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        str(ROOT / "scripts" / "convert_sparse_to_dense.py"),
        str(small_run),
        "--verify",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout and (small_run / NAME).is_file()


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_custom_networks_pass_verification(
    stem_stride: int, tmp_path: Path, make_checkpoint: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "step_1.pt"
    checkpoint = make_checkpoint(
        backbone="convnextv2_nano",
        in_chans=1,
        stem_stride=stem_stride,
        decoder_dim=16,
        grn_scope="batch",
        **SIZES,
    )
    torch.save(checkpoint, path)
    lines: list[str] = []
    report = convert_checkpoint(path, tmp_path / "out.pth", log=lines.append)
    assert len(report.differences) == 8
    assert any("grn_scope=batch" in line for line in lines)
    assert open_source(report.out).architecture().stem_stride == stem_stride


@pytest.fixture
def pair(small_checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor], Architecture]:
    """(our weights, what they were converted to, architecture)."""
    from fcmae.convert import to_timm

    architecture = open_source(small_checkpoint).architecture()
    return small_checkpoint["model"], to_timm(small_checkpoint["model"], architecture)[0], architecture


@pytest.mark.parametrize(
    ("key", "first_stage"),
    [
        ("stem.0.weight", 0),
        ("stages.1.blocks.0.mlp.grn.weight", 1),
        ("stages.2.downsample.1.weight", 2),
        ("stages.3.blocks.0.conv_dw.weight", 3),
    ],
)
def test_one_perturbed_weight_fails_verification_from_its_stage_on(
    key: str, first_stage: int, pair: tuple[dict[str, Tensor], dict[str, Tensor], Architecture]
) -> None:
    ours, converted, architecture = pair
    check_differences(compare_outputs(ours, converted, TIMM, architecture))
    changed = converted[key].clone()
    changed.view(-1)[0] += 0.1
    differences = compare_outputs(ours, {**converted, key: changed}, TIMM, architecture)
    against_timm = [found.relative > 1e-4 for found in differences[:4]]
    assert against_timm == [stage >= first_stage for stage in range(4)]
    assert all(found.relative < 1e-5 for found in differences[4:])  # ours against ours: not touched
    with pytest.raises(InputError, match="verify: expected differences of at most 1e-04"):
        check_differences(differences)


def test_nothing_is_written_when_verification_fails(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = StageDifference(comparison="all visible", stage="stage 2", absolute=1.0, scale=10.0)
    broken = dataclasses.replace(CONVNEXTV2, compare=lambda *arguments: [worse])
    monkeypatch.setattr("fcmae.convert.families.FAMILIES", (broken,))
    with pytest.raises(InputError, match=r"got 1\.0e-01 \(all visible, stage 2\)"):
        convert_checkpoint(small_run, log=lambda line: None)
    assert not (small_run / NAME).exists()


def test_bound_is_relative_to_the_scale_and_nan_fails() -> None:
    def difference(absolute: float, scale: float) -> StageDifference:
        return StageDifference(comparison="x", stage="stage 0", absolute=absolute, scale=scale)

    check_differences([difference(0.9, 1e4), difference(0.0, 0.0)])
    for bad in (difference(1.1, 1e4), difference(float("nan"), float("nan")), difference(1e-3, 0.0)):
        with pytest.raises(InputError, match="verify"):
            check_differences([bad])


def test_names_that_no_system_takes_are_one_line(small_run: Path) -> None:
    long = "x" * 300
    with pytest.raises(InputError, match="unreadable file"):
        convert_checkpoint(small_run / long)
    with pytest.raises(InputError, match="expected to write"):
        convert_checkpoint(small_run, small_run / f"{long}.pth", verify=False, log=lambda line: None)
