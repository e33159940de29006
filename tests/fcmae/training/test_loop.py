"""The loop with a task of its own kind: lists of images, a dictionary of losses, events, state."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.config import PretrainConfig
from fcmae.config_io import to_dict
from fcmae.errors import InputError
from fcmae.masking import BatchPart
from fcmae.training.engine.checkpoints import find_start
from fcmae.training.engine.devices import launch_fabric
from fcmae.training.engine.loop import Event, Running, Task, train


class Scenes(NamedTuple):
    images: list[Tensor]
    """[3, H, W] each, of sizes of their own."""
    targets: list[dict[str, Tensor]]
    bad: list[str]

    @property
    def size(self) -> int:
        return len(self.images)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        found = self.head(torch.stack([image.mean(dim=(1, 2)) for image in images]))
        wanted = torch.stack([target["box"] for target in targets])
        return {"box_loss": (found - wanted).square().mean(), "size_loss": 0.1 * found.square().mean()}


class Detection(Task):
    kind = "detect"

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Detector(), events=[Event(every=2, call=self._look)])
        self.looked: list[int] = []
        self.stepped: list[int] = []

    def begin(self, fabric: Fabric, state: Mapping[str, Any]) -> None:
        self.looked = list(state.get("looked", []))

    def loss(
        self, network: nn.Module, batch: Scenes, *, step: int, part: BatchPart
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses = network(batch.images, batch.targets)
        noise = 1 + 0.1 * torch.rand(())  # seeded by the loop
        return noise * sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}

    def after_step(self, step: int) -> None:
        self.stepped.append(step)

    def state(self) -> dict[str, Any]:
        return {"looked": self.looked}

    def _look(self, running: Running, step: int) -> None:
        self.looked.append(step)
        torch.rand(())  # disturbs no step
        running.log.write("look", step=step, seen=len(self.looked))


def scenes(start: int, stop: int, *, spoilt: int | None = None) -> Iterator[Scenes]:
    for number in range(start, stop):
        draw = torch.Generator().manual_seed(number)
        images = [torch.rand(3, height, 5, generator=draw) for height in (4, 6)]
        targets = [{"box": torch.rand(4, generator=draw)} for _ in images]
        if number == spoilt:
            targets[1]["box"][0] = torch.nan
        yield Scenes(images, targets, [])


def run(config: PretrainConfig, *, spoilt: int | None = None) -> Detection:
    fabric = launch_fabric(config.run, config.train)
    start = find_start(config.resume, config.run.dir, kind="detect", config=to_dict(config))
    task = Detection()
    accumulate = config.train.accumulate
    batches = scenes(start.step * accumulate, config.train.steps * accumulate, spoilt=spoilt)
    train(task, batches, config, fabric=fabric, start=start, images=2)
    return task


def test_a_task_of_its_own_resumes_bit_for_bit_with_its_state_and_events(pretrain_config, monkeypatch):
    options = {"steps": 5, "checkpoint_every": 3, "accumulate": 2, "clip_grad": 1.0}
    whole, config = (pretrain_config(name, **options) for name in ("whole", "parts"))
    task = run(whole)
    assert task.looked == [2, 4, 5] and task.stepped == [1, 2, 3, 4, 5]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(Interruption):
            run(config)
    assert run(config).looked == [2, 4, 5]
    state = last_state(config.run.dir)
    assert state["kind"] == "detect" and state["looked"] == [2, 4, 5]
    assert_same_tensors(state["model"], last_state(whole.run.dir)["model"])
    assert not torch.equal(state["model"]["head.weight"], Detection().model.get_parameter("head.weight"))
    for line in events(config.run.dir, "train"):
        assert line["loss"] > 0 and {"box_loss", "size_loss"} < line.keys()
    assert [line["seen"] for line in events(config.run.dir, "look")] == [1, 2, 3]


def test_a_value_that_is_not_finite_is_found_in_a_batch_of_lists_and_dictionaries(pretrain_config):
    with pytest.raises(InputError, match=r"a finite loss, got nan at step 3, .* first in the input images"):
        run(pretrain_config(steps=5), spoilt=2)
