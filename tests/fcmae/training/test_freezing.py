"""Partial fine-tuning: which parameters learn, and that nothing else is computed, stepped or drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

from fcmae.config import ClassifierConfig
from fcmae.convert import Architecture
from fcmae.convert.networks.vit import ViTArchitecture
from fcmae.errors import InputError
from fcmae.models.convmae_classifier import ConvMAEClassifier
from fcmae.training.finetune import finetune
from fcmae.training.freezing import train_last_blocks
from fcmae.training.pretrain import pretrain

DEPTHS = {"convnextv2": (1, 1, 2, 1), "vit": (3,), "convmae": (1, 2, 2)}


def make(name: str, *, drop_path: float = 0.0) -> nn.Module:
    if name == "convnextv2":
        architecture = Architecture(backbone="convnextv2_atto", depths=DEPTHS[name], dims=(8, 8, 12, 16))
        return architecture.create_timm(num_classes=3, drop_path_rate=drop_path)
    if name == "vit":
        vit = ViTArchitecture(
            backbone="vit", depth=3, dim=16, num_heads=2, patch_size=8, grid=(4, 4), pools_patches=True
        )
        return vit.create_timm(num_classes=3, drop_path_rate=drop_path)
    return ConvMAEClassifier(DEPTHS[name], (8, 8, 16), num_heads=2, num_classes=3, drop_path=drop_path)


def learning(classifier: nn.Module) -> set[str]:
    """The first parts of the names of what learns: as many as tell the blocks' parts apart."""
    return {
        name.rpartition(".")[0]
        for name, parameter in classifier.named_parameters()
        if parameter.requires_grad
    }


def modules_of(classifier: nn.Module, *prefixes: str) -> set[str]:
    """The modules with parameters of their own below these."""
    return {
        name.rpartition(".")[0]
        for name, _ in classifier.named_parameters()
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    }


# What learns with so many blocks, from MAE's description for its blocks; a downsampling or patch embedding
# goes with the block after it.
TRAINED = {
    "convnextv2": {
        0: ["head"],
        0.5: ["head", "stages.3.blocks.0.norm", "stages.3.blocks.0.mlp"],
        1: ["head", "stages.3"],
        1.5: ["head", "stages.3", "stages.2.blocks.1.norm", "stages.2.blocks.1.mlp"],
        3: ["head", "stages.3", "stages.2"],
        4.5: ["head", "stages.3", "stages.2", "stages.1", "stages.0.blocks.0.norm", "stages.0.blocks.0.mlp"],
        5: ["head", "stages", "stem"],
    },
    "vit": {
        0: ["head", "fc_norm"],
        0.5: ["head", "fc_norm", "blocks.2.norm2", "blocks.2.mlp"],
        2: ["head", "fc_norm", "blocks.2", "blocks.1"],
        3: ["head", "fc_norm", "blocks", "cls_token", "pos_embed", "patch_embed"],
    },
    "convmae": {
        0: ["head", "fc_norm"],
        0.5: ["head", "fc_norm", "blocks3.1.norm2", "blocks3.1.mlp"],
        2: ["head", "fc_norm", "blocks3", "patch_embed3", "patch_embed4"],
        2.5: [
            "head", "fc_norm", "blocks3", "patch_embed3", "patch_embed4", "blocks2.1.norm2", "blocks2.1.mlp"
        ],
        4: ["head", "fc_norm", "blocks3", "patch_embed3", "patch_embed4", "blocks2", "patch_embed2"],
    },
}  # fmt: skip
CASES = [(name, blocks) for name, of_blocks in TRAINED.items() for blocks in of_blocks]


@pytest.mark.parametrize(("name", "blocks"), CASES)
def test_what_learns(name: str, blocks: float):
    classifier = make(name)
    expected = modules_of(classifier, *TRAINED[name][blocks])
    train_last_blocks(classifier, blocks, depths=DEPTHS[name])
    assert learning(classifier) == expected


@pytest.mark.parametrize(("name", "blocks"), [case for case in CASES if 0 < case[1] < 3])
def test_gradients_reach_what_learns_and_autograd_stops_there(name: str, blocks: float):
    whole, part = make(name), make(name)
    part.load_state_dict(whole.state_dict())
    train_last_blocks(part, blocks, depths=DEPTHS[name])
    graphs: list[bool] = []
    for _, module in part.named_modules():
        if list(module.parameters()) and not any(p.requires_grad for p in module.parameters()):
            module.register_forward_hook(lambda module, inputs, out: graphs.append(_has_graph(out)))
    images = torch.randn(2, 3, 32, 32)
    labels = torch.tensor([0, 2])
    for classifier in (whole, part):
        nn.functional.cross_entropy(classifier(images), labels).backward()
    wanted = dict(whole.named_parameters())
    for key, parameter in part.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted[key].grad)
        else:
            assert parameter.grad is None and wanted[key].grad is not None
    assert len(graphs) > 3 and not any(graphs)


def _has_graph(output: object) -> bool:
    features = output if isinstance(output, torch.Tensor) else getattr(output, "features", None)
    return isinstance(features, torch.Tensor) and features.grad_fn is not None


@pytest.mark.parametrize("name", TRAINED)
def test_frozen_blocks_run_as_in_evaluation(name: str):
    """No stochastic depth and no statistics of the batch, also after an evaluation has put the mode back."""
    classifier = make(name, drop_path=0.5)
    frozen, trained = {
        "convnextv2": ("stages.2.blocks.1", "stages.3"),
        "vit": ("blocks.1", "blocks.2"),
        "convmae": ("blocks3.0", "blocks3.1"),
    }[name]
    inner = classifier.get_submodule(frozen)
    norm = nn.BatchNorm2d(3)
    classifier.add_module("extra", nn.Sequential())  # has no parameters: follows the mode
    inner.add_module("batch_norm", norm)  # frozen with its block
    train_last_blocks(classifier, 1, depths=DEPTHS[name])
    classifier.eval()
    classifier.train()
    assert classifier.training and classifier.get_submodule("extra").training
    assert classifier.get_submodule(trained).training and not inner.training and not norm.training
    seen: list[Any] = []
    inner.register_forward_hook(lambda module, inputs, out: seen.append(out))
    images = torch.randn(4, 3, 32, 32)
    logits = [classifier(images) for _ in range(4)]
    assert all(torch.equal(seen[0], other) for other in seen[1:])
    assert not all(torch.equal(logits[0], other) for other in logits[1:])  # the last block drops its branch
    norm(images)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("blocks", [0, 0.5, 2])
def test_a_run_steps_nothing_else_and_resumes(finetune_config, pretrain_config, monkeypatch, blocks: float):
    pretrained = pretrain(pretrain_config("pretrained", steps=1))
    model = {"weights": str(pretrained), "train_last_blocks": blocks}
    metrics = finetune(finetune_config("whole", model=model))
    config = finetune_config("parts", model=model)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            finetune(config)
    assert finetune(config) == metrics
    whole, parts = last_state(Path(config.run.dir).parent / "whole"), last_state(config.run.dir)
    for part in ("model", "optimizer", "ema"):
        assert_same_tensors(whole[part], parts[part])
    before = last_state(pretrained)["model"]
    stepped = {"head.fc", "head.norm", *([] if blocks == 0 else ["stages.3.blocks.0.mlp.fc1"])}
    for name, tensor in whole["model"].items():
        old = before.get(f"encoder.{name}")
        if old is not None and name not in whole["optimizer"]:
            assert torch.equal(tensor.flatten(), old.flatten()), name
            assert torch.equal(whole["ema"][name].flatten(), old.flatten()), name
    assert stepped <= {name.rpartition(".")[0] for name in whole["optimizer"]}
    for name in ("stages.3.blocks.0.mlp.fc1.weight", "stages.3.blocks.0.conv_dw.weight"):
        learnt = not torch.equal(whole["model"][name].flatten(), before[f"encoder.{name}"].flatten())
        assert learnt == (name in whole["optimizer"]) == (blocks > (0.5 if "conv_dw" in name else 0))
    assert len(events(config.run.dir, "train")) == 6


def test_impossible_numbers_are_one_line():
    with pytest.raises(InputError, match=r"model.train_last_blocks: expected at most the 5 blocks .* got 6"):
        train_last_blocks(make("convmae"), 6, depths=DEPTHS["convmae"])
    for blocks, got in ((0.3, "0.3"), (-1.0, "-1")):
        with pytest.raises(InputError, match=rf"expected a number of blocks, 0, 0.5, 1, .*, got {got}\."):
            ClassifierConfig(train_last_blocks=blocks)
