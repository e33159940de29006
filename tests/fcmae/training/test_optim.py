"""Weight decay, layer decay and the schedule, against values worked out by hand."""

import math

import pytest
import timm
import torch
from torch import nn

from fcmae.config import TrainConfig
from fcmae.errors import InputError
from fcmae.training.engine.optim import (
    build_adamw,
    follow_schedules,
    layer_id,
    layer_scale,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
    peak_learning_rate,
    set_learning_rate,
)

ATTO = (2, 2, 6, 2)
BASE = (3, 3, 27, 3)


def test_schedule_values():
    rate = [learning_rate(step, peak=1.0, minimum=0.1, warmup_steps=4, steps=15) for step in range(15)]
    assert rate[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rate[4] == 1.0
    assert rate[9] == pytest.approx(0.55)  # half-way from step 4 to step 14: the mean of peak and minimum
    assert rate[14] == pytest.approx(0.1)
    assert rate[11] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.7)))


def test_schedule_falls_by_steps():
    rate = [
        learning_rate(
            step, peak=1.0, minimum=0.2, warmup_steps=2, steps=8, schedule="steps", milestones=(0.5, 0.75)
        )
        for step in range(8)
    ]
    assert rate == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    train = TrainConfig(steps=8, warmup_steps=2, schedule="steps", milestones=(0.5,), base_lr=64.0)
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr_scale": 1.0}])
    assert follow_schedules(optimizer, train, step=4, devices=1) == pytest.approx(1.6)


def test_schedule_falls_along_a_line():
    rate = [
        learning_rate(step, peak=1.0, minimum=0.2, warmup_steps=2, steps=7, schedule="linear")
        for step in range(7)
    ]
    assert rate == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    train, adamw = TrainConfig(steps=7, warmup_steps=2, schedule="linear", base_lr=64.0), torch.optim.AdamW
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = adamw([{"params": [weight], "lr_scale": 1.0}])
    assert follow_schedules(optimizer, train, step=4, devices=1) == pytest.approx(16 * 0.5)


def test_schedule_without_warmup_starts_at_the_peak():
    assert learning_rate(0, peak=2.0, minimum=0.0, warmup_steps=0, steps=1) == 2.0


def test_schedule_shorter_than_its_warmup_stays_in_it():
    assert learning_rate(9, peak=1.0, minimum=0.0, warmup_steps=100, steps=10) == pytest.approx(0.1)


def test_peak_counts_every_image_of_a_step():
    train = TrainConfig(base_lr=1e-4, batch_size=64, accumulate=8)
    assert peak_learning_rate(train, devices=4) == pytest.approx(1e-4 * 64 * 8 * 4 / 256)


# (parameter, its layer in Atto single, its layer in Base group): SEMANTICS' table of the original code.
LAYERS = [
    ("stem.0.weight", 1, 0),
    ("stem.1.bias", 1, 0),
    ("stages.0.blocks.0.conv_dw.weight", 1, 1),
    ("stages.0.blocks.1.mlp.fc1.weight", 2, 1),
    ("stages.1.downsample.0.weight", 3, 2),
    ("stages.1.blocks.0.norm.weight", 3, 2),
    ("stages.1.blocks.1.norm.weight", 4, 2),
    ("stages.2.downsample.1.weight", 5, 3),
    ("stages.2.blocks.0.mlp.grn.weight", 5, 3),
    ("stages.2.blocks.2.conv_dw.bias", 7, 3),
    ("stages.2.blocks.3.conv_dw.bias", 8, 4),
    ("stages.2.blocks.5.conv_dw.bias", 10, 4),
    ("stages.3.downsample.0.weight", 11, 12),
    ("stages.3.blocks.0.mlp.fc2.weight", 11, 12),
    ("stages.3.blocks.1.mlp.fc2.weight", 12, 12),
    ("head.norm.weight", 13, 13),
    ("head.fc.weight", 13, 13),
]


@pytest.mark.parametrize(("name", "single", "group"), LAYERS)
def test_layer_ids_of_atto_single_and_base_group(name: str, single: int, group: int):
    assert layer_id(name, depths=ATTO, kind="single") == single
    assert layer_id(name, depths=BASE, kind="group") == group


def test_layer_ids_of_base():
    def block(stage: int, index: int, kind: str) -> int:
        return layer_id(f"stages.{stage}.blocks.{index}.norm.bias", depths=BASE, kind=kind)  # type: ignore[arg-type]

    assert [block(2, index, "group") for index in range(27)] == [3 + index // 3 for index in range(27)]
    assert [block(0, 2, "single"), block(1, 2, "single"), block(2, 26, "single"), block(3, 2, "single")] == [
        3,
        6,
        33,
        36,
    ]
    assert layer_id("stages.3.downsample.0.weight", depths=BASE, kind="single") == 34
    assert layer_id("head.fc.bias", depths=BASE, kind="single") == 37


def test_layer_scale_is_one_at_the_head_and_smallest_at_the_stem():
    single = layer_scale(0.9, depths=ATTO, kind="single")
    assert single("head.fc.weight") == 1.0
    assert single("stem.0.weight") == pytest.approx(0.9**12)
    group = layer_scale(0.6, depths=BASE, kind="group")
    assert group("stages.3.blocks.0.norm.weight") == pytest.approx(0.6)
    assert group("stem.0.weight") == pytest.approx(0.6**13)
    assert layer_scale(1.0, depths=ATTO, kind="single")("anything") == 1.0


def test_layer_id_refuses_another_network():
    with pytest.raises(InputError, match=r"ConvNeXt V2 parameter, got layer1\.0\.conv1"):
        layer_id("layer1.0.conv1.weight", depths=ATTO, kind="single")


class Odd(nn.Module):
    """Parameters that weight decay must tell apart by more than their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.grn = nn.ParameterDict({"gamma": torch.zeros(1, 3), "beta": torch.zeros(1, 3)})
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_only_kernels_and_matrices_decay():
    groups = parameter_groups(Odd(), weight_decay=0.05)
    names = {group["weight_decay"]: {name for name, _ in group["params"]} for group in groups}
    assert names == {
        0.05: {"linear.weight"},
        0.0: {"linear.bias", "mask_token", "grn.gamma", "grn.beta", "norm.weight", "norm.bias"},
    }


def test_groups_of_a_classifier_hold_every_parameter_once_at_its_rate():
    model = timm.create_model("convnextv2_atto", num_classes=2)
    scale = layer_scale(0.9, depths=ATTO, kind="single")
    groups = parameter_groups(model, weight_decay=0.3, lr_scale=scale)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    optimizer = build_adamw(groups, betas=(0.9, 0.999), device=torch.device("cpu"))
    set_learning_rate(optimizer, 2.0)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["head.fc.bias"] == 2.0
    assert rates["stages.2.downsample.0.weight"] == pytest.approx(2 * 0.9**8)


def stepped(model: nn.Module, weight_decay: float, lr_scale=lambda name: 1.0) -> torch.optim.Optimizer:
    groups = parameter_groups(model, weight_decay=weight_decay, lr_scale=lr_scale)
    return build_adamw(groups, betas=(0.9, 0.999), device=torch.device("cpu"))


def test_optimizer_state_survives_other_groups():
    model = Odd()
    first = stepped(model, 0.05)
    model.linear(torch.randn(4, 3)).square().sum().backward()
    set_learning_rate(first, 0.1)
    first.step()
    saved = optimizer_state(first)
    # Without decay and with a rate of its own for the bias, torch's numbering of the parameters is another.
    other = stepped(model, 0.0, lr_scale=lambda name: 0.5 if name == "linear.bias" else 1.0)
    assert [group["param_names"] for group in other.param_groups] != [
        group["param_names"] for group in first.param_groups
    ]
    used = {name: state for name, state in saved.items() if state}
    load_optimizer_state(other, saved)
    for name, state in used.items():
        restored = optimizer_state(other)[name]
        assert all(torch.equal(restored[key], state[key]) for key in state)
    assert set(used) == {"linear.weight", "linear.bias"}
    assert other.param_groups[0]["weight_decay"] == 0.0


def test_optimizer_state_of_another_model_is_refused():
    with pytest.raises(InputError, match="differs at"):
        load_optimizer_state(stepped(Odd(), 0.0), optimizer_state(stepped(nn.Linear(2, 2), 0.0)))
