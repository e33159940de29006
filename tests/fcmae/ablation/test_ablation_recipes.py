"""The shipped ablations: every arm is a configuration and a network, and no two arms are the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ablation_runs import CONFIGS

from fcmae.ablation.spec import load_spec
from fcmae.config import FinetuneConfig
from fcmae.methods import from_config

RECIPES = sorted((CONFIGS / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_arm_is_a_run(path: Path, tmp_path: Path) -> None:
    """The networks are made without weights: their sizes fit the images and the masks."""
    options = {"data.root": "images"} if "imagenet1k" in path.name else {}
    if "finetune:" in path.read_text() and "hold_out:" not in path.read_text():  # which brings the images
        options["finetune.data.root"] = "images"
    spec = load_spec(path, options)
    configs = [spec.pretrain_config(arm, seed=0, out=tmp_path) for arm in spec.arms]
    tuned: list[FinetuneConfig | None] = [None] * len(configs)
    if spec.finetune is not None:
        tuned = [spec.finetune_config(arm, seed=0, out=tmp_path) for arm in spec.arms]
    said = {
        repr((config.data, config.model, config.train, _said(tune)))
        for config, tune in zip(configs, tuned, strict=True)
    }
    assert len(said) == len(spec.arms)
    for config in configs:
        if config.model.method != "mae":
            with torch.device("meta"):
                from_config(config.model, config.data)
        elif (
            not options
        ):  # MAE draws a mask when it is made, which wants a device; the small ones stand for all
            from_config(config.model, config.data)


def _said(config: FinetuneConfig | None) -> object:
    """What the recipe says of a fine-tuning; the weights lie in the arm's own folder."""
    return None if config is None else (config.data, replace(config.model, weights=None), config.train)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_head_comment_is_that_of_the_file(path: Path) -> None:
    head = path.read_text().partition("title:")[0]
    assert f"fcmae ablate --config configs/ablations/{path.name}" in head
    assert "# Cost:" in head and "# Where the question comes from:" in head
