"""ViTs fine-tuned from every kind of weights: what is loaded, what begins anew, how fast layers learn."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn import functional as F
from training_runs import Interruption, assert_same_tensors, interrupt_after, last_state

import fcmae
from fcmae.config import ClassifierConfig, MAEConfig, MSNConfig
from fcmae.convert.files import write_weights
from fcmae.convert.networks.vit import ViTArchitecture
from fcmae.errors import InputError
from fcmae.models import Encoder
from fcmae.models.position import sincos_positions
from fcmae.training.classifier import build_classifier
from fcmae.training.engine.optim import layer_id, layer_scale, parameter_groups
from fcmae.training.finetune import finetune
from fcmae.training.pretrain import pretrain

SIZES: dict[str, Any] = {"backbone": "vit_tiny_patch8", "depths": (2,), "dims": (16,), "num_heads": 2}
MAE = MAEConfig(**SIZES, decoder_dim=16, decoder_depth=1, decoder_heads=2)
MSN = MSNConfig(
    **SIZES, positions="learnt", focal_views=1, focal_size=32, prototypes=8, hidden_dim=16, output_dim=8
)
CONFIG = ClassifierConfig(backbone="vit_tiny_patch8", num_heads=2)
build = partial(build_classifier, num_classes=3, in_chans=3, image_size=(64, 64))


@pytest.fixture
def mae_run(pretrain_config) -> Path:
    return pretrain(replace(pretrain_config("mae", steps=1, checkpoint_every=1), model=MAE))


def state_of(weights: Any, config: ClassifierConfig = CONFIG, **options: Any) -> dict[str, Tensor]:
    classifier, depths = build(config, weights, **options)
    assert isinstance(classifier, VisionTransformer)
    assert depths == (2,)
    assert {block.attn.num_heads for block in classifier.blocks} == {2}  # pyright: ignore
    return classifier.state_dict()


def encoder_of(pretrained: dict[str, Tensor], part: str, **options: Any) -> Encoder:
    """Our own encoder with the weights that a method's state dict has under `part`."""
    encoder = fcmae.create_backbone("vit_tiny_patch8", depths=(2,), dims=(16,), num_heads=2, **options)
    part += "."
    encoder.load_state_dict({n.removeprefix(part): t for n, t in pretrained.items() if n.startswith(part)})
    return encoder


def tiny_vit(**options: Any) -> VisionTransformer:
    """timm's, its position embeddings large enough to be learnt ones."""
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 64, "num_classes": 5}
    model = VisionTransformer(**{**sizes, **options})
    nn.init.normal_(model.pos_embed)  # pyright: ignore[reportArgumentType]
    return model


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_interrupted_and_resumed_is_the_uninterrupted_run(finetune_config, mae_run, monkeypatch, pool: str):
    model = {"backbone": "vit_tiny_patch8", "num_heads": 2, "weights": str(mae_run), "global_pool": pool}
    options = {"model": model, "data": {"image_size": (32, 64)}, "layer_decay": 0.65}
    metrics = finetune(finetune_config("whole", **options))
    config = finetune_config("parts", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            finetune(config)
    (mae_run / "checkpoints").rename(mae_run / "moved")  # the pretrained weights are not needed any more
    assert finetune(config) == metrics
    whole, parts = last_state(Path(config.run.dir).parent / "whole"), last_state(config.run.dir)
    for part in ("model", "optimizer", "ema"):
        assert_same_tensors(whole[part], parts[part])
    assert not torch.equal(parts["model"]["pos_embed"], sincos_positions((4, 8), 16, prefix=1))  # trained
    assert ("norm.weight" in parts["model"], "fc_norm.weight" in parts["model"]) == (
        pool == "token",
        pool == "avg",
    )
    tuned, _ = build(replace(CONFIG, global_pool=model["global_pool"]), config.run.dir, image_size=(32, 64))
    assert torch.equal(tuned.state_dict()["pos_embed"], parts["model"]["pos_embed"])


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_the_classifier_is_the_encoder_and_a_new_head(mae_run: Path, pool: Any):
    """Of one size it gives the logits that our own encoder and the head's definition give."""
    encoder = encoder_of(last_state(mae_run)["model"], "encoder")
    classifier, _ = build(replace(CONFIG, global_pool=pool, head_init_scale=1.0), str(mae_run))
    head: Any = classifier.get_submodule("head")
    images = torch.randn(2, 3, 64, 64)
    if pool == "token":
        vector = encoder.embed(images)
    else:  # a new norm over the mean of the patches, in the place of the pretrained one
        encoder.set_submodule("norm", nn.Identity())
        vector = F.layer_norm(encoder(images)[0].mean(dim=(1, 2)), (16,), eps=1e-6)
    torch.testing.assert_close(classifier.eval()(images), F.linear(vector, head.weight, head.bias))


def test_fixed_positions_are_computed_and_learnt_ones_interpolated(mae_run: Path, pretrain_config):
    positions = state_of(str(mae_run), image_size=(96, 32))["pos_embed"]
    assert torch.equal(positions, sincos_positions((12, 4), 16, prefix=1))

    learnt = tiny_vit().state_dict()
    positions = state_of(learnt, image_size=(96, 32))["pos_embed"]
    patches = learnt["pos_embed"][:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    wanted = F.interpolate(patches, (12, 4), mode="bicubic", antialias=True, align_corners=False)
    assert torch.equal(positions[:, 0], learnt["pos_embed"][:, 0])
    torch.testing.assert_close(positions[:, 1:], wanted.flatten(2).transpose(1, 2))


def test_of_an_msn_run_the_target_encoder_is_taken(pretrain_config):
    """Its norm too, and its learnt positions, which MSN keeps for images of 224 pixels."""
    run = pretrain(replace(pretrain_config("msn", steps=2), model=MSN))
    config = replace(CONFIG, global_pool="token", head_init_scale=1.0)
    classifier, _ = build(config, str(run))
    head: Any = classifier.get_submodule("head")
    images = torch.randn(2, 3, 64, 64)
    logits = classifier.eval()(images)
    for part, is_taken in (("target_encoder", True), ("encoder", False)):
        encoder = encoder_of(last_state(run)["model"], part, positions="learnt")
        expected = F.linear(encoder.embed(images), head.weight, head.bias)
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-6) == is_taken


def test_official_mae_checkpoints_load(tmp_path: Path):
    """Their names: timm's for the encoder, `decoder_*` and `mask_token` beside it."""
    method = fcmae.create_method(
        "mae", image_size=64, decoder_dim=16, decoder_depth=1, decoder_heads=2, **SIZES
    )
    official = {
        name.removeprefix("encoder.").removeprefix("decoder."): tensor
        for name, tensor in method.state_dict().items()
    }
    assert {"mask_token", "decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight"} <= official.keys()
    torch.save({"model": official, "epoch": 1}, tmp_path / "mae.pth")
    state = state_of(str(tmp_path / "mae.pth"))
    loaded = official.keys() & state.keys()
    assert state.keys() - loaded == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(state[name], official[name]) for name in loaded)
    broken = {name: tensor for name, tensor in official.items() if name != "blocks.1.norm1.bias"}
    with pytest.raises(InputError, match=r"got missing blocks\.1\.norm1\.bias"):
        build(CONFIG, broken)
    with pytest.raises(InputError, match=r"got unexplained blocks\.1\.extra"):
        build(CONFIG, {**official, "blocks.1.extra": torch.zeros(1)})


def test_official_msn_checkpoints_load():
    """Saved from inside DistributedDataParallel, both networks, each with a projection head as its `fc`."""
    networks = {}
    for network in ("encoder", "target_encoder"):
        vit = tiny_vit(num_classes=0).state_dict() | {"fc.fc1.weight": torch.zeros(16, 16)}
        networks[network] = {f"module.{name}": tensor for name, tensor in vit.items()}
    state = state_of({**networks, "epoch": 1}, replace(CONFIG, global_pool="token"))
    target = {name.removeprefix("module."): tensor for name, tensor in networks["target_encoder"].items()}
    assert state.keys() - target.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(state[name], target[name]) for name in state.keys() & target.keys())


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_timms_files_load(tmp_path: Path, pool: Any):
    """Their head is left; the norm over the mean of the patches is kept where they have one."""
    theirs = tiny_vit(global_pool=pool).state_dict()
    norm = "fc_norm.weight" if pool == "avg" else "norm.weight"
    theirs[norm] = torch.rand(16)
    write_weights(tmp_path / "timm.safetensors", theirs, metadata={}, force=False)
    state = state_of(str(tmp_path / "timm.safetensors"), replace(CONFIG, global_pool=pool))
    assert torch.equal(state[norm], theirs[norm])
    assert torch.equal(state["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    assert state["head.weight"].shape == (3, 16)


def test_random_weights_and_the_heads_scale():
    config = ClassifierConfig(backbone="vit_tiny_patch16", head_init_scale=0.001, drop_path=0.2)
    torch.manual_seed(0)
    classifier, depths = build_classifier(config, None, num_classes=1000, in_chans=1, image_size=(32, 48))
    assert isinstance(classifier, VisionTransformer)
    assert depths == (12,)
    assert classifier.get_parameter("head.weight").std().item() == pytest.approx(2e-5, rel=0.02)
    assert not classifier.get_parameter("head.bias").any()
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in classifier.blocks]  # pyright: ignore
    assert rates == pytest.approx([0.2 * block / 11 for block in range(12)])
    assert classifier(torch.zeros(1, 1, 32, 48)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"backbone": "vit_small_patch8"}, {}, r"model\.backbone: expected vit_tiny_patch8, .*got vit_small"),
        (
            {"backbone": "convnextv2_atto", "num_heads": None},
            {},
            r"model\.backbone: expected vit_tiny_patch8",
        ),
        ({}, {"in_chans": 1}, r"data\.in_chans: expected that of the weights, 3, got 1"),
        ({"num_heads": None}, {}, r"model\.num_heads: expected that of the weights, 2, got 3"),
        ({}, {"image_size": (60, 64)}, "60"),
    ],
)
def test_runs_of_another_network_are_refused_in_one_line(mae_run: Path, config, options, message: str):
    with pytest.raises(InputError, match=message) as raised:
        build(replace(CONFIG, **config), str(mae_run), **options)
    assert "\n" not in str(raised.value)


def test_files_of_another_network_are_refused_in_one_line():
    pooled = tiny_vit(global_pool="avg").state_dict()
    tiny = timm.create_model("vit_tiny_patch16_224", depth=12, img_size=32).state_dict()
    atto = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)).state_dict()
    base = ClassifierConfig(backbone="vit_base_patch16")
    for config, weights, message in (
        (replace(CONFIG, global_pool="token"), pooled, r"model\.global_pool: expected avg, .*got token"),
        (
            base,
            tiny,
            r"model\.backbone: expected vit_tiny_patch16, that of the weights, got vit_base_patch16",
        ),
        (base, atto, r"model\.backbone: expected a ConvNeXt V2, as the weights are, got vit_base_patch16"),
        (
            replace(CONFIG, num_heads=3),
            pooled,
            r"model\.num_heads: expected a divisor of the width 16, got 3",
        ),
        (
            ClassifierConfig(global_pool="token"),
            None,
            r"model\.global_pool: expected avg for convnextv2_tiny",
        ),
    ):
        with pytest.raises(InputError, match=message) as raised:
            build(config, weights)
        assert "\n" not in str(raised.value)


# (parameter, its layer of a ViT of 12 blocks), from MAE's description of BEiT's rule.
LAYERS = [
    ("cls_token", 0),
    ("pos_embed", 0),
    ("patch_embed.proj.weight", 0),
    ("blocks.0.attn.qkv.weight", 1),
    ("blocks.11.mlp.fc2.bias", 12),
    ("norm.weight", 13),
    ("fc_norm.bias", 13),
    ("head.weight", 13),
]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_layer_ids(name: str, layer: int):
    assert layer_id(name, depths=(12,), kind="single") == layer
    assert layer_scale(0.65, depths=(12,), kind="single")(name) == pytest.approx(0.65 ** (13 - layer))


def test_layer_ids_that_a_vit_does_not_have():
    with pytest.raises(InputError, match=r"train\.layer_decay_type: expected single for a ViT, got group"):
        layer_scale(0.65, depths=(12,), kind="group")
    with pytest.raises(InputError, match=r"ViT parameter, got stages\.0\.blocks\.0\.conv_dw"):
        layer_id("stages.0.blocks.0.conv_dw.weight", depths=(12,), kind="single")


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_rates_and_weight_decay_are_those_of_timms_own_groups(pool: Any):
    architecture = ViTArchitecture(
        backbone="vit", depth=3, dim=16, num_heads=2, patch_size=8, grid=(4, 4), pools_patches=pool == "avg"
    )
    model = architecture.create_timm(num_classes=5)
    scale = layer_scale(0.65, depths=(3,), kind="single")
    ours = parameter_groups(model, weight_decay=0.05, lr_scale=scale)
    theirs = param_groups_layer_decay(
        model, weight_decay=0.05, layer_decay=0.65, no_weight_decay_list=model.no_weight_decay()
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {name: (g["weight_decay"], g["lr_scale"]) for g in ours for name, _ in g["params"]}
    wanted = {names[p]: (g["weight_decay"], g["lr_scale"]) for g in theirs for p in g["params"]}
    assert found.keys() == wanted.keys()
    for name in found:
        # timm lets the last norm go with the last block, MAE with the head.
        factor = 0.65 if name.startswith("norm.") else 1.0
        assert (found[name][0], factor * found[name][1]) == pytest.approx(wanted[name]), name
    assert len(ours) == len(theirs) == 2 * (3 + 2)  # two for each layer: weights, and what does not decay
