"""The pretraining loop: resumed = uninterrupted, it learns, it stops in time, it accumulates."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.config import DataConfig, PretrainConfig
from fcmae.config_io import to_dict
from fcmae.data import open_dataset
from fcmae.errors import InputError
from fcmae.methods import from_config
from fcmae.training import pretrain as pretraining
from fcmae.training.engine import loop
from fcmae.training.engine.devices import launch_fabric
from fcmae.training.pretrain import pretrain


def test_run_folder(pretrain_config):
    config = pretrain_config(checkpoint_every=4, keep_checkpoints=1, log_every=4)
    run_dir = pretrain(config)
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "log.jsonl",
        "tensorboard",
    ]
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["newest.pt", "step_00000006.pt"]
    assert yaml.safe_load((run_dir / "config.yaml").read_text()) == to_dict(config)
    state = last_state(run_dir)
    assert (state["kind"], state["step"], state["config"]) == ("pretrain", 6, to_dict(config))
    assert state["model"].keys() == from_config(config.model, config.data).state_dict().keys()
    train = events(run_dir, "train")
    assert [line["step"] for line in train] == [4, 6]
    assert train[0].keys() == {
        "event", "step", "loss", "lr", "gradient_norm", "images_per_second", "data_wait", "memory_mb"
    }  # fmt: skip
    assert events(run_dir, "end")[0].keys() == {"event", "step", "seconds", "peak_memory_mb"}


@pytest.mark.parametrize("resumed_steps", [3, 5], ids=["one_checkpoint", "two_checkpoints"])
def test_interrupted_and_resumed_is_the_uninterrupted_run(pretrain_config, monkeypatch, resumed_steps: int):
    whole = pretrain(pretrain_config("whole", accumulate=2))
    config = pretrain_config("parts", accumulate=2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, resumed_steps)
        with pytest.raises(Interruption):
            pretrain(config)
    assert last_state(config.run.dir)["step"] == resumed_steps // 2 * 2
    parts = pretrain(config)
    assert_same_tensors(last_state(whole)["model"], last_state(parts)["model"])
    assert_same_tensors(last_state(whole)["optimizer"], last_state(parts)["optimizer"])
    # The curve, too, is the same, and no step is there twice.
    curves = [
        [(line["step"], line["loss"], line["lr"]) for line in events(run, "train")] for run in (whole, parts)
    ]
    assert curves[0] == curves[1]


def test_a_checkpoint_goes_on_in_another_folder_and_with_workers(pretrain_config):
    whole = pretrain(pretrain_config("whole"))
    branch = pretrain_config(
        "branch", resume=str(whole / "checkpoints" / "step_00000004.pt"), data={"workers": 2}
    )
    assert_same_tensors(last_state(whole)["model"], last_state(pretrain(branch))["model"])


def test_another_seed_is_another_run(pretrain_config):
    states = [last_state(pretrain(pretrain_config(f"seed{seed}", seed=seed)))["model"] for seed in (0, 1)]
    assert not torch.equal(states[0]["encoder.stem.0.weight"], states[1]["encoder.stem.0.weight"])


def test_truncated_newest_checkpoint_is_named_and_the_one_before_used(pretrain_config):
    config = pretrain_config()
    whole = last_state(pretrain(config))
    damaged = Path(config.run.dir) / "checkpoints" / "step_00000006.pt"
    os.truncate(damaged, damaged.stat().st_size - 100)
    pretrain(config)
    assert_same_tensors(whole["model"], last_state(config.run.dir)["model"])
    refused = events(config.run.dir, "refused_checkpoint")
    assert [line["step"] for line in refused] == [4]
    assert "step_00000006.pt" in refused[0]["reason"]


def test_a_finished_run_is_left_as_it_is(pretrain_config):
    config = pretrain_config()
    pretrain(config)
    before = {path: path.read_bytes() for path in (Path(config.run.dir) / "checkpoints").iterdir()}
    pretrain(config)
    assert {path: path.read_bytes() for path in before} == before


def test_overfits_one_batch(pretrain_config, monkeypatch):
    # Four digits, uncropped and unflipped; the masks still change with every step.
    data = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    config = pretrain_config(data=data, model={"drop_path": 0.0}, base_lr=1.0, steps=20)
    four = open_dataset(config.data, split="all", labelled=False).subset(range(4))
    monkeypatch.setattr(pretraining, "open_dataset", lambda *args, **kwargs: four)
    losses = [line["loss"] for line in events(pretrain(config), "train")]
    assert losses[0] > 0.9
    assert sum(losses[-3:]) / 3 < 0.6 * losses[0]


class Wrapped(nn.Module):
    """A method around another, which draws the masks."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.inner = method

    def transform(self, data: DataConfig) -> Any:
        return self.inner.transform(data)

    def draw_visible_ids(self, images: Tensor, generator: torch.Generator, **part: Any) -> Tensor:
        return self.inner.draw_visible_ids(images, generator, **part)

    def after_step(self, progress: float) -> None:
        self.inner.after_step(progress)


class PoisonedAt(Wrapped):
    """A method whose encoder's second stage overflows from the n-th forward pass on."""

    def __init__(self, method: nn.Module, calls: int) -> None:
        super().__init__(method)
        self.calls = calls

    def forward(self, images: Tensor, visible_ids: Tensor) -> Any:
        self.calls -= 1
        if self.calls < 0:
            self.inner.encoder.stages[1].blocks[0].mlp.fc1.weight.data.mul_(1e38)
        return self.inner(images, visible_ids=visible_ids)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    pretrain_config, monkeypatch, precision
):
    config = pretrain_config(accumulate=2, precision=precision)
    monkeypatch.setattr(
        pretraining, "from_config", lambda model, data: PoisonedAt(from_config(model, data), calls=9)
    )
    # Nine forward passes are four steps and a half: the second half of step 5 fails.
    message = (
        r"train: expected a finite loss, got (nan|inf) at step 5, learning rate [\d.e-]+, first in the "
        r"output of inner\.encoder\.stages\.1\.blocks\.0\.\S+\. .*step_00000004\.pt\.$"
    )
    with pytest.raises(InputError, match=message) as caught:
        pretrain(config)
    assert "\n" not in str(caught.value)
    state = last_state(config.run.dir)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())
    assert [line["step"] for line in events(config.run.dir, "non_finite")] == [5]


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, spoiled: set[int]) -> None:
    """Make the stem's gradient overflow in these steps of the process, counted from 1."""
    inner, calls = loop.gradient_norm, []

    def gradient_norm(model: nn.Module, *, clip: float | None) -> Tensor:
        calls.append(1)
        if len(calls) in spoiled:
            model.encoder.stem[0].weight.grad[0, 0] = torch.inf
        return inner(model, clip=clip)

    monkeypatch.setattr(loop, "gradient_norm", gradient_norm)


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_a_gradient_that_is_not_finite_is_skipped_counted_and_named(
    pretrain_config, monkeypatch, clip_grad: float | None
):
    config = pretrain_config(max_skipped_steps=2, clip_grad=clip_grad)
    with monkeypatch.context() as patch:
        spoil_gradients(patch, {2, 4})
        state = last_state(pretrain(config))
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["skipped_steps"] == [2, 4]
    # AdamW counts the steps that it made.
    assert {int(moments["step"]) for moments in state["optimizer"].values()} == {4}
    lines = events(config.run.dir, "skipped_step")
    assert [line["step"] for line in lines] == [2, 4]
    assert {line["first"] for line in lines} == {"the gradient of encoder.stem.0.weight"}


def test_too_many_skipped_steps_stop_the_run_also_across_a_resume(pretrain_config, monkeypatch):
    config = pretrain_config(max_skipped_steps=1)
    first = replace(config, train=replace(config.train, steps=2))
    with monkeypatch.context() as patch:
        spoil_gradients(patch, {1})
        pretrain(first)
    with monkeypatch.context() as patch:
        spoil_gradients(patch, {2})
        with pytest.raises(InputError, match=r"at most 1 steps without a finite gradient, got 2 at step 4"):
            pretrain(config)


def test_weights_that_are_not_finite_are_never_saved(pretrain_config, monkeypatch):
    # An infinite gradient under a finite loss, at the step that would be saved.
    config = pretrain_config(checkpoint_every=2)
    step, calls = torch.optim.AdamW.step, []

    def spoil(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            self.param_groups[0]["params"][0].grad.fill_(torch.inf)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(
        InputError, match=r"finite weights, got others at step 4, .*the weight encoder\.stem\.0\.weight"
    ):
        pretrain(config)
    assert last_state(config.run.dir)["step"] == 2


class OneMask(Wrapped):
    """A method that shows every image the same patches, so that micro-batches and the whole batch agree."""

    def forward(self, images: Tensor, visible_ids: Tensor) -> Any:
        return self.inner(images, visible_ids=torch.zeros_like(visible_ids))


CLIP = 0.001


@pytest.mark.parametrize("clip_grad", [None, CLIP])
def test_two_half_batches_are_the_whole_batch(pretrain_config, monkeypatch, clip_grad: float | None):
    monkeypatch.setattr(pretraining, "from_config", lambda model, data: OneMask(from_config(model, data)))
    moments = []
    for batch_size, accumulate in ((4, 1), (2, 2)):
        config = pretrain_config(
            f"x{accumulate}",
            model={"drop_path": 0.0},
            steps=1,
            batch_size=batch_size,
            accumulate=accumulate,
            clip_grad=clip_grad,
        )
        saved = last_state(pretrain(config))["optimizer"]
        moments.append({name: state["exp_avg"] for name, state in saved.items()})
    for name, whole in moments[0].items():  # after one step the first moment is a tenth of the gradient
        error = (moments[1][name] - whole).abs().max()
        assert error <= 1e-5 * max(value.abs().max() for value in moments[0].values()), name
    norm = torch.stack([value.norm() for value in moments[0].values()]).norm() / 0.1
    if clip_grad is None:
        assert norm > 2 * CLIP  # or clipping would have nothing to do
    else:
        assert norm == pytest.approx(CLIP, rel=1e-3)


def test_micro_batches_draw_their_own_masks(pretrain_config, monkeypatch):
    drawn: list[Tensor] = []

    class Recording(Wrapped):
        def forward(self, images: Tensor, visible_ids: Tensor) -> Any:
            out = self.inner(images, visible_ids=visible_ids)
            drawn.append(out.visible.flatten())
            return out

    monkeypatch.setattr(pretraining, "from_config", lambda model, data: Recording(from_config(model, data)))
    pretrain(pretrain_config(steps=3, accumulate=2, batch_size=8))
    assert len({tuple(mask.tolist()) for mask in drawn}) == 6


def test_unreadable_images_are_skipped_named_and_counted_across_a_resume(
    pretrain_config, tmp_path: Path, monkeypatch
):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(folder / f"{number}.png")
    for number in (1, 4):
        os.truncate(folder / f"{number}.png", 60)
    data = {"source": "folder", "root": str(folder)}
    config = pretrain_config(data=data)
    pretrain(replace(config, train=replace(config.train, steps=3)))
    pretrain(config)
    names = [line["name"] for line in events(config.run.dir, "bad_image")]
    assert sorted(name.split(": ")[0] for name in names) == [str(folder / "1.png"), str(folder / "4.png")]
    with pytest.raises(InputError, match=r"at most 1 unreadable images, got 2"):
        pretrain(pretrain_config("strict", data={**data, "max_bad_images": 1}))


def test_changed_model_is_refused(pretrain_config):
    pretrain(pretrain_config(steps=2))
    with pytest.raises(InputError, match=r"model\.decoder_dim = 16 \(got 8\)"):
        pretrain(pretrain_config(steps=4, model={"decoder_dim": 8}))


def test_unknown_hardware_is_one_line():
    config = PretrainConfig(data=DataConfig(source="digits"))
    with pytest.raises(InputError, match=r"run\.accelerator: expected one of .*cuda.*, got gpuu"):
        launch_fabric(replace(config.run, accelerator="gpuu"), config.train)
    with pytest.raises(InputError, match=r"run\.devices: expected at least 1, got 0"):
        launch_fabric(replace(config.run, devices=0), config.train)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"expected hardware for 1 x cuda, got: [^\n]*$"):
            launch_fabric(replace(config.run, accelerator="cuda"), config.train)
