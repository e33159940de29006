"""The loader's benchmark on a few small images: both arms, parity, table, JSON and bad input."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fcmae import cli
from fcmae.bench.data import format_table, measure, require_parity
from fcmae.errors import InputError

ARMS = ["fcmae", "resize_8_bit", "transform_on=device", "torchvision"]


def test_all_loaders_run_in_turns(tmp_path: Path, capsys) -> None:
    out = tmp_path / "data.json"
    options = ["--images", "6", "--batch-size", "4", "--rounds", "2", "--jpeg-size", "60", "40"]
    assert cli.main(["bench", "data", *options, "--image-size", "32", "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert [result["arm"] for result in results] == ARMS
    assert all(result["images"] == 8 and len(result["cpu_seconds"]) == 2 for result in results)
    printed = capsys.readouterr().out
    assert "one thread" in printed and printed.splitlines()[-1].split()[-1] == "1.00"


def test_every_arm_is_run_once_a_round_and_once_to_warm_up() -> None:
    calls = []

    def arm(name: str):
        def run():
            calls.append(name)
            return iter([3])

        return run

    measure({"a": arm("a"), "b": arm("b")}, rounds=2)
    assert calls == ["a", "b"] * 3


def test_ratios_are_rates_taken_round_by_round() -> None:
    base = {"images_per_cpu_second": 1.0, "images_per_second": 1.0}
    results = [
        {**base, "arm": "a", "cpu_seconds": [1, 2, 90]},
        {**base, "arm": "b", "cpu_seconds": [2, 4, 3]},
    ]
    assert format_table(results).splitlines()[1].split()[-1] == "2.00"  # twice as fast in two rounds of three


def test_other_pixels_are_not_timed(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "same.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    require_parity([str(tmp_path / "same.jpg")])
    with pytest.raises(InputError, match=r"expected the same pixels .* from .*turned\.jpg"):
        require_parity([str(tmp_path / "same.jpg"), str(tmp_path / "turned.jpg")])


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--rounds", "0"], "--rounds: expected at least 1, got 0."),
        (["--jpeg-size", "0", "9"], "--jpeg-size: expected positive sides"),
        (["--data.root", "gone"], "data.root: expected a folder of images, got no such folder"),
    ],
)
def test_mistakes(argv: list[str], part: str, capsys) -> None:
    assert cli.main(["bench", "data", *argv]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1
