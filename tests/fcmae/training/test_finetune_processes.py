"""Fine-tuning by several processes: what each evaluates, and weights and average that are shared out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from training_runs import events, last_state

from fcmae.config import FinetuneConfig
from fcmae.training.pretrain import pretrain

UNEVEN = {"val_fraction": 0.0095}
"""17 validation images: of two processes, the second has one less and, in fours, one batch less."""


@pytest.fixture
def weights(pretrain_config) -> dict[str, str]:
    """Of depths and dims that take no time."""
    return {"weights": str(pretrain(pretrain_config("pretrained", steps=1)))}


def by(config: FinetuneConfig, processes: int, strategy: Any = "auto") -> Path:
    run = replace(config.run, devices=processes, strategy=strategy)
    return run_processes(replace(config, run=run), processes)


def test_the_curve_and_the_metrics_of_one_process_are_those_of_two(finetune_config, weights):
    plain = {"mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "rand_augment": None}
    found = []
    for processes in (1, 2):
        config = finetune_config(
            f"by{processes}",
            model={**weights, "drop_path": 0.0, "head_init_scale": 1.0},
            data=UNEVEN,
            batch_size=4 // processes,
            **plain,
        )
        run = by(config, processes)
        found.append(([line["loss"] for line in events(run, "train")], last_state(run)["metrics"]))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-5)
    # Of 17 images, not of the 9 of one process.
    assert round(17 * found[0][1]["accuracy"], 9).is_integer()


@pytest.mark.parametrize("trained", [None, 1.5], ids=["all", "last_blocks"])
def test_fsdp_is_ddp_also_across_a_resume(finetune_config, weights, trained: float | None):
    """With all regularisation, accumulation, clipping and an average; blocks run twice under FSDP."""
    folders: dict[str, Path] = {}
    for name, strategy, source in (
        ("ddp", "ddp", None),
        ("fsdp", "fsdp", None),
        ("fsdp_from_ddp", "fsdp", "ddp"),
        ("ddp_from_fsdp", "ddp", "fsdp"),
    ):
        config = finetune_config(
            name,
            resume="auto" if source is None else str(folders[source] / "checkpoints" / "step_00000004.pt"),
            model={**weights, "head_init_scale": 1.0, "train_last_blocks": trained},
            data=UNEVEN,
            base_lr=0.3,
            accumulate=2,
            clip_grad=1.0,
            evaluate_every=1,
            checkpoint_activations=strategy == "fsdp",
        )
        folders[name] = by(config, 2, strategy)
    whole = folders.pop("ddp")
    state = last_state(whole)
    assert not torch.equal(state["ema"]["head.fc.weight"], state["model"]["head.fc.weight"])
    for name, folder in folders.items():
        others = last_state(folder)
        for event in ("train", "eval"):
            expected, found = (
                [{key: line[key] for key in line if "loss" in key or "accuracy" in key} for line in lines]
                for lines in (events(whole, event), events(folder, event))
            )
            assert len(found) == (2 if "from" in name else 6)
            for left, right in zip(found, expected[-len(found) :], strict=True):
                assert left == pytest.approx(right, abs=1e-6), name
        for part in ("model", "optimizer", "ema"):
            torch.testing.assert_close(others[part], state[part], rtol=0, atol=1e-6)
