"""--scale-to: the recipe's images a step on other devices, and the line that says so."""

from pathlib import Path

import pytest

from fcmae.config import FinetuneConfig, PretrainConfig
from fcmae.config_io import load_config, load_scaled
from fcmae.errors import InputError
from fcmae.training.engine.optim import peak_learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = str(CONFIGS / "fcmae" / "convnextv2_base_imagenet1k.yaml")  # 8 devices x 64 images x 8
FINETUNE = str(CONFIGS / "fcmae" / "convnextv2_base_imagenet1k_finetune.yaml")  # 8 x 128, mixup


def split(argv: list[str], cls: type = PretrainConfig) -> tuple[tuple[int, int, int, int], str, float]:
    config, line = load_scaled(cls, ["--config", *argv, "--data.root=images"])
    assert line is not None
    train, run = config.train, config.run
    lr = peak_learning_rate(train, devices=run.devices * run.nodes)
    return (run.nodes, run.devices, train.batch_size, train.accumulate), line, lr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--scale-to", "1"], (1, 1, 64, 64)),
        (["--scale-to=4"], (1, 4, 64, 16)),
        (["--scale-to=8"], (1, 8, 64, 8)),
        (["--scale-to=64"], (8, 8, 64, 1)),
        (["--scale-to=128"], (16, 8, 32, 1)),
        (["--scale-to=2", "--train.batch_size=24"], (1, 2, 24, 86)),  # 4,128: 24 does not divide 2,048
        (["--scale-to=2", "--train.batch_size", "16"], (1, 2, 16, 128)),
    ],
)
def test_the_images_of_a_step_stay(options: list[str], expected: tuple[int, ...]):
    found, line, lr = split([RECIPE, *options])
    assert found == expected
    nodes, devices, batch_size, accumulate = expected
    images = nodes * devices * batch_size * accumulate
    assert lr == pytest.approx(1.5e-4 * images / 256)
    assert f"{images} images a step" in line and f"learning rate {lr:g}" in line
    assert ("as in the recipe" if images == 4096 else "the nearest to its 4096") in line


def test_where_they_do_not_divide_the_nearest_number_is_taken():
    found, line, _ = split([RECIPE, "--scale-to=3"])
    assert found == (1, 3, 62, 22) and "4092 images a step" in line and "the nearest to its 4096" in line


def test_batches_that_mixup_pairs_stay_even():
    found, line, lr = split([FINETUNE, "--scale-to=3"], FinetuneConfig)
    assert found == (1, 3, 114, 3) and "1026 images a step" in line
    assert lr == pytest.approx(6.25e-4 * 1026 / 256)


def test_what_msn_accumulates_is_said():
    recipe = str(CONFIGS / "msn" / "vit_small_patch16_imagenet1k.yaml")
    assert "MSN compares" in split([recipe, "--scale-to=1"])[1]


def test_without_it_nothing_changes():
    argv = ["--config", RECIPE, "--data.root=images"]
    assert load_scaled(PretrainConfig, argv) == (load_config(PretrainConfig, argv), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale-to"], "expected a number of devices, got none"),
        (["--scale-to=many"], "expected a number of devices, got many"),
        (["--scale-to=0"], "expected a number of devices, got 0"),
        (["--scale-to=12"], "expected up to 8 devices or a multiple"),
        (["--scale-to=4", "--run.devices=4"], "expected no --run.devices beside it"),
        (["--scale-to=4", "--train.accumulate", "2"], "expected no --train.accumulate beside it"),
    ],
)
def test_mistakes(options: list[str], message: str):
    with pytest.raises(InputError, match=message):
        load_scaled(PretrainConfig, ["--config", RECIPE, "--data.root=images", *options])
