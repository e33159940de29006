"""`fcmae reconstruct`: pictures from a checkpoint, and one clear line for what cannot be used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fcmae.config import DataConfig, FCMAEConfig, PretrainConfig
from fcmae.config_io import to_dict
from fcmae.errors import InputError
from fcmae.methods import from_config
from fcmae.report.command import main

CONFIG = PretrainConfig(
    data=DataConfig(source="digits", image_size=(64, 96), in_chans=1),
    model=FCMAEConfig(backbone="convnextv2_atto", decoder_dim=8, depths=(1, 1, 1, 1), dims=(4, 8, 8, 8)),
)


def write_run(run: Path, **changes: Any) -> Path:
    content = {
        "format": "fcmae-1",
        "kind": "pretrain",
        "config": to_dict(CONFIG),
        "step": 7,
        "model": from_config(CONFIG.model, CONFIG.data).state_dict(),
    }
    path = run / "checkpoints" / "step_00000007.pt"
    path.parent.mkdir(parents=True)
    torch.save({**content, **changes}, path)
    return path


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.new("L", (120, 90), color=20 * index).save(folder / f"{index:02d}.png")
    return folder


def test_a_folder_gives_figures_of_eight_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    images = write_images(tmp_path / "images", 9)
    arguments = [str(tmp_path / "run"), "--data.root", str(images), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--count", "20"]) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["reconstructions_001.png", "reconstructions_002.png"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {file}" for file in files]
    with Image.open(files[0]) as eight, Image.open(files[1]) as one:
        assert eight.width > 4 * one.width and eight.height == one.height


def test_the_run_itself_says_which_images_and_where_to(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    assert main([str(path), "--count", "2"]) == 0
    assert (tmp_path / "run" / "reconstructions" / "reconstructions_001.png").stat().st_size > 0


def test_the_seed_draws_the_masks(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main([str(path), "--digits", "--count", "2", "--seed", str(seed), "--out", str(tmp_path / name)])
        drawn.append((tmp_path / name / "reconstructions_001.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_unreadable_image_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "run")
    images = write_images(tmp_path / "images", 2)
    (images / "00.png").write_bytes(b"not a picture")
    assert main([str(path), "--data.root", str(images), "--out", str(tmp_path / "out")]) == 0
    assert "skipped" in (out := capsys.readouterr().out) and "00.png" in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--count", "0"], "--count: expected at least 1, got 0"),
        (["--count", "two"], "invalid int value: 'two'"),
        (["--digits", "--data.root", "x"], "not allowed with argument"),
        (["--data.root", "no/such/folder"], "data.root"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, options: list[str], expected: str) -> None:
    path = write_run(tmp_path / "run")
    with pytest.raises(InputError) as error:
        main([str(path), *options])
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_all_images_unreadable_is_an_error(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    images = write_images(tmp_path / "images", 1)
    (images / "00.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a readable image among 1, got none; .*00\.png"):
        main([str(path), "--data.root", str(images)])


def test_a_run_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected step_\*\.pt files"):
        main([str(tmp_path)])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "finetune"}, "expected one that fcmae pretrain wrote, got finetune"),
        ({"model": {}}, "expected the weights that its configuration describes"),
    ],
)
def test_a_checkpoint_without_a_fitting_decoder_is_an_error(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = write_run(tmp_path / "run", **changes)
    with pytest.raises(InputError, match=expected) as error:
        main([str(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_output_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"--out: expected to write .*reconstructions_001\.png"):
        main([str(path), "--count", "1", "--out", str(tmp_path / "out")])
