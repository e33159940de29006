"""YAML files and dotted options become configurations, and each mistake is one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from fcmae.config import (
    METHOD_CONFIGS,
    DataConfig,
    EvaluateConfig,
    FCMAEConfig,
    FinetuneConfig,
    PretrainConfig,
    PretrainTrainConfig,
)
from fcmae.config_io import config_help, from_dict, load_config, save_config, to_dict
from fcmae.errors import InputError

CONFIGS = (
    sorted(  # of one run each; an ablation is a list of runs, and downstream runs have tests of their own
        path
        for path in (Path(__file__).parents[2] / "configs").glob("*/*.yaml")
        if path.parent.name not in ("ablations", "detection", "segmentation")
    )
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write_yaml(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write_yaml


def refusal(argv: list[str], cls: type = PretrainConfig) -> str:
    with pytest.raises(InputError) as raised:
        load_config(cls, argv)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_no_arguments_give_the_defaults() -> None:
    assert load_config(PretrainConfig, []) == PretrainConfig()
    assert load_config(FinetuneConfig, []) == FinetuneConfig()


def test_file_and_options_are_read_by_type(write: Callable[[str], str]) -> None:
    path = write(
        """
data: {source: folder, root: 7, crop_scale: [0.5, 1], image_size: [96, 128], flip: false, mean: null}
model:
  depths: [1, 1, 2, 1]
  init: 002
train: {base_lr: 1e-3, clip_grad: null, steps: 7, seed: 1}
run:
  # a section whose lines are all commented out
resume: none
"""
    )
    config = load_config(PretrainConfig, ["--train.seed=2", "--config", path, "--train.clip_grad", "5"])
    assert config == PretrainConfig(
        data=DataConfig(root="7", crop_scale=(0.5, 1.0), image_size=(96, 128), flip=False),
        model=FCMAEConfig(depths=(1, 1, 2, 1), init="002"),
        train=PretrainTrainConfig(base_lr=1e-3, steps=7, seed=2, clip_grad=5.0),
        resume="none",
    )


def test_presets_give_way_to_the_file_and_to_options(write: Callable[[str], str]) -> None:
    argv = ["--config", write("data: {image_size: 96}"), "--data.flip=true"]
    presets = {"data.image_size": (64, 32), "data.in_chans": 1, "data.flip": False}
    data = load_config(EvaluateConfig, argv, presets=lambda: presets).data
    assert (data.image_size, data.in_chans, data.flip, data.source) == (96, 1, True, "digits")


def test_typos_are_told_before_presets_are_asked_for() -> None:
    def presets() -> dict[str, int]:
        raise AssertionError("too early")

    with pytest.raises(InputError, match=r"The nearest is data\.image_size"):
        load_config(EvaluateConfig, ["--data.image_sze=3"], presets=presets)


@pytest.mark.parametrize(
    ("option", "section", "field", "value"),
    [
        ("--train.base_lr=1e-3", "train", "base_lr", 1e-3),
        ("--train.clip_grad=null", "train", "clip_grad", None),
        ("--data.image_size=224", "data", "image_size", 224),
        ("--data.image_size=[96, 128]", "data", "image_size", (96, 128)),
        ("--data.crop_scale=[5e-1,1]", "data", "crop_scale", (0.5, 1.0)),
        ("--data.flip=false", "data", "flip", False),
        ("--data.root=null", "data", "root", None),
        ("--model.init=002", "model", "init", "002"),
        ("--model.dims=[8,16,24,32]", "model", "dims", (8, 16, 24, 32)),
    ],
)
def test_option_values(option: str, section: str, field: str, value: object) -> None:
    found = getattr(getattr(load_config(PretrainConfig, [option]), section), field)
    assert found == value and type(found) is type(value)


def test_a_folder_named_by_a_number_is_text() -> None:
    config = load_config(PretrainConfig, ["--data.source=folder", "--data.root=2024"])
    assert config.data.root == "2024"


def test_a_root_that_would_be_ignored_is_refused() -> None:
    assert refusal(["--data.root=scans"]).startswith("data.root: expected none with data.source=digits")


def test_option_overrides_a_file_that_is_incomplete_without_it(write: Callable[[str], str]) -> None:
    path = write("data: {source: folder}")
    assert refusal(["--config", path]).startswith("data.root: expected a folder")
    assert load_config(PretrainConfig, ["--config", path, "--data.root", "scans"]).data.root == "scans"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data:\n  sorce: digits", ["line 2", "data.sorce", "nearest is data.source"]),
        ("trian: {steps: 1}", ["line 1", "trian", "nearest is train."]),
        ("train: {steps: 1}\ntrain: {seed: 1}", ["line 2", "train again", "first: 1"]),
        ("data: [1, 2]", ["line 1", "in data", "a list"]),
        ("digits", ["line 1", "`name: value`", "digits"]),
        ("data:\n  source: [digits\nx: 3", ["line 3", "YAML"]),
        ("data:\n\tsource: digits", ["line 2", "YAML"]),
        ("train:\n  steps: 1.5", ["train.steps: expected integer, got 1.5", "line 2"]),
        ("train:\n  steps:", ["train.steps: expected integer, got nothing"]),
        ("train: {base_lr: fast}", ["train.base_lr: expected number, got fast"]),
        ("train: {precision: fp16}", ["train.precision: expected fp32 or bf16, got fp16"]),
        ("data: {image_size: [1, 2, 3]}", ["expected integer or [integer, integer], got [1, 2, 3]"]),
        ("data: {mean: {a: 1}}", ["data.mean: expected [number, ...] or null"]),
        ("model: {mask_ratio: 1.5}", ["model.mask_ratio: expected a value in (0, 1), got 1.5"]),
    ],
)
def test_mistakes_in_a_file(text: str, parts: list[str], write: Callable[[str], str]) -> None:
    path = write(text)
    message = refusal(["--config", path])
    assert all(part in message for part in parts), message
    assert path in message or "mask_ratio" in message  # a value that the dataclass refuses has no origin


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--train.stps=5"], ["command line", "train.stps", "nearest is train.steps"]),
        (["--train.step=5"], ["train.step.", "nearest is train.steps"]),  # an abbreviation is no key
        (["--steps", "5"], ["nearest is train.steps"]),
        (["--qqq", "5"], ["qqq", "--help"]),
        (["--data=digits"], ["data.<field>"]),
        (["--train.steps"], ["train.steps: expected integer, got none"]),
        (["--train.steps", "many"], ["train.steps: expected integer, got many"]),
        (["--train.base_lr=nan"], ["train.base_lr: expected number, got nan"]),
        (["--train.betas", "0.9", "0.95"], ["train.betas: expected [number, number], got 0.9"]),
        (["stray"], ["--section.field=VALUE", "stray"]),
        (["--config"], ["--config: expected a YAML file, got none"]),
        (["--config", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["--config=a.yaml", "--config=b.yaml"], ["expected one file, got 2"]),
        (
            ["--data.source=folder"],
            ["data.root: expected a folder of images, got none. Add --data.root DIR."],
        ),
        (["--data.image_size=0"], ["data.image_size: expected positive sides"]),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], parts: list[str]) -> None:
    message = refusal(argv)
    assert all(part in message for part in parts), message


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    assert "no UTF-8 text" in refusal(["--config", str(tmp_path / "image.png")])
    assert "Is a directory" in refusal(["--config", str(tmp_path)])


def test_round_trips(tmp_path: Path) -> None:
    config = load_config(FinetuneConfig, ["--data.image_size=[96,128]", "--train.min_lr=1e-6"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(FinetuneConfig, ["--config", str(tmp_path / "config.yaml")]) == config
    assert from_dict(FinetuneConfig, to_dict(config)) == config
    torch.save(to_dict(config), tmp_path / "config.pt")
    assert from_dict(FinetuneConfig, torch.load(tmp_path / "config.pt", weights_only=True)) == config


def test_to_dict_holds_plain_values_only() -> None:
    plain = to_dict(PretrainConfig())
    assert plain["data"]["crop_scale"] == [0.2, 1.0] and plain["train"]["clip_grad"] is None
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"train": {"stps": 1}}, "nearest is train.steps"),
        ({"train": 3}, "train.<field>"),
        ({"train": {"steps": 1.5}}, "train.steps: expected integer, got 1.5"),
        ({"data": {"source": "folder"}}, "data.root: expected a folder"),
    ],
)
def test_from_dict_refuses(values: dict, part: str) -> None:
    with pytest.raises(InputError) as raised:
        from_dict(PretrainConfig, values)
    assert part in str(raised.value)


def test_help_shows_docstrings_of_the_class_and_its_bases() -> None:
    text = " ".join(config_help(FinetuneConfig, prog="fcmae finetune", description="Fine-tune.").split())
    assert "--train.layer_decay LAYER_DECAY Factor on the learning rate per layer below the head" in text
    assert "--train.batch_size BATCH_SIZE Images per device and forward pass" in text
    assert "default: 375000" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs(path: Path) -> None:
    """Each file loads, says its own command in its head, and holds differences from the defaults only."""
    commands = {
        "finetune": ("finetune", FinetuneConfig),
        "probe": (f"probe runs/{path.stem[:-6]}", EvaluateConfig),
    }
    command, cls = commands.get(path.stem.rpartition("_")[2], ("pretrain", PretrainConfig))
    sections = yaml.safe_load(path.read_text())
    root = ["--data.root", "images"] if sections["data"].get("source") == "folder" else []
    config = to_dict(load_config(cls, ["--config", str(path), *root]))
    assert f"fcmae {command} --config configs/{path.parent.name}/{path.name}" in path.read_text()
    method = sections.get("model", {}).get("method")
    defaults = to_dict(cls() if method is None else PretrainConfig(model=METHOD_CONFIGS[method]()))
    for section, fields in sections.items():
        for field in fields.keys() - {"source", "backbone", "method"}:  # what a run is made of is always said
            assert config[section][field] != defaults[section][field], (
                f"{section}.{field} repeats the default"
            )


def test_shipped_configs_are_there() -> None:
    names = {f"{path.parent.name}/{path.stem}" for path in CONFIGS}
    atto = ("smoke", "demo", "demo_finetune", "folder", "folder_finetune")
    assert names >= {f"fcmae/convnextv2_atto_{run}" for run in atto}
    sizes = ("base_patch16", "large_patch16", "huge_patch14")
    assert names >= {"mae/vit_tiny_smoke", *(f"mae/vit_{size}_imagenet1k" for size in sizes)}
    finetunes = {"msn/vit_base_patch16", *(f"mae/vit_{size}" for size in sizes)}
    assert names >= {f"{name}_imagenet1k_finetune" for name in finetunes}
    probes = {"convmae/convmae_base", *(f"mae/vit_{size}" for size in sizes)}
    assert names >= {f"{name}_imagenet1k_probe" for name in probes}
