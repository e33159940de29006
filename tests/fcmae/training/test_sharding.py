"""What FSDP and activation checkpointing take for blocks, and that they do what they are for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from training_runs import assert_same_tensors, last_state

import fcmae
from fcmae.training.engine.devices import LossOf
from fcmae.training.engine.sharding import blocks_of, checkpoint_activations, shard
from fcmae.training.pretrain import pretrain

CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16), "decoder_dim": 8}
CONVMAE = {"depths": (1, 2, 1), "dims": (8, 8, 16), "num_heads": 2}
VIT = {"depths": (3,), "dims": (16,), "num_heads": 2}
TRANSFORMER = {"decoder_dim": 8, "decoder_depth": 2, "decoder_heads": 2}


@pytest.mark.parametrize(
    ("method", "backbone", "options", "blocks"),
    [
        ("fcmae", "convnextv2_atto", CONVNEXT, 5 + 1),
        ("convmae", "convmae_small", {**CONVMAE, **TRANSFORMER}, 4 + 2),
        ("mae", "vit_tiny_patch16", {**VIT, **TRANSFORMER}, 3 + 2),
        ("msn", "vit_tiny_patch16", VIT, 3 + 3),
    ],
)
def test_every_block_of_encoder_and_decoder_is_found(method: str, backbone: str, options: Any, blocks: int):
    assert len(blocks_of(fcmae.create_method(method, backbone=backbone, image_size=224, **options))) == blocks


def test_every_block_of_a_classifier_is_found():
    assert len(blocks_of(timm.create_model("convnextv2_atto", pretrained=False))) == 2 + 2 + 6 + 2


def small_method() -> fcmae.methods.Method:
    torch.manual_seed(0)
    return fcmae.create_method("fcmae", backbone="convnextv2_atto", image_size=64, **CONVNEXT)


def saved_numbers(encoder: nn.Module) -> int:
    """Numbers that a forward pass keeps for its backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()), lambda _: None
    ):
        encoder(torch.randn(8, 3, 64, 64), visible=torch.eye(2).bool().expand(8, 2, 2))
    return sum(sizes)


def test_checkpointed_blocks_keep_little():
    plain, checkpointed = small_method().encoder, small_method().encoder
    checkpoint_activations(checkpointed)
    assert saved_numbers(checkpointed) < 0.5 * saved_numbers(plain)
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()


def test_checkpointed_blocks_train_bit_for_bit(pretrain_config):
    """Also with stochastic depth, whose draws are repeated."""
    states = [
        last_state(pretrain(pretrain_config(str(on), steps=2, checkpoint_activations=on)))["model"]
        for on in (False, True)
    ]
    assert_same_tensors(states[0], states[1])


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """One process that is a group."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_each_block_is_gathered_only_while_it_runs():
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    method = small_method()
    loss_of = LossOf(method)
    assert shard(loss_of, mesh) is loss_of
    weight_of = "method.encoder.stages.2.blocks.1.mlp.fc1.weight"
    seen: list[bool] = []

    def look(*_: Any) -> None:
        seen.append(isinstance(loss_of.get_parameter(weight_of), DTensor))

    blocks = blocks_of(method)
    assert all(isinstance(block, FSDPModule) for block in blocks)
    method.get_submodule("encoder.stages.2.blocks.1.mlp").register_forward_hook(look)
    images = torch.randn(2, 3, 64, 64)
    loss, _ = loss_of(images, method.draw_visible_ids(images))
    look()
    loss.backward()
    look()
    assert seen == [False, True, True]
    assert all(isinstance(parameter.grad, DTensor) for parameter in loss_of.parameters())
