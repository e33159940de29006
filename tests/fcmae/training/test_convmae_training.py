"""ConvMAE through both loops: pretraining and its resume, and fine-tuning from its checkpoints."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from training_runs import Interruption, assert_same_tensors, events, interrupt_after, last_state

import fcmae
from fcmae.config import ClassifierConfig, ConvMAEConfig, PretrainConfig
from fcmae.errors import InputError
from fcmae.models import ConvMAEPreset, find_preset
from fcmae.models.convmae_classifier import ConvMAEClassifier
from fcmae.training.classifier import build_classifier
from fcmae.training.engine.optim import layer_id, layer_scale
from fcmae.training.finetune import finetune
from fcmae.training.pretrain import pretrain

MODEL = ConvMAEConfig(
    backbone="convmae_small",
    depths=(1, 1, 1),
    dims=(8, 8, 16),
    num_heads=2,
    kernel_size=3,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
)
DEPTHS = (2, 2, 11)


@pytest.fixture
def convmae_config(pretrain_config):
    """As pretrain_config, of a ConvMAE."""

    def make(name: str = "run", *, model=(), **train) -> PretrainConfig:
        return replace(pretrain_config(name, **train), model=replace(MODEL, **dict(model)))

    return make


def test_pretraining_learns_and_resumes_bit_for_bit(convmae_config, monkeypatch):
    whole = pretrain(convmae_config("whole"))
    config = convmae_config("parts")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            pretrain(config)
    parts = pretrain(config)
    assert_same_tensors(last_state(whole)["model"], last_state(parts)["model"])
    losses = [line["loss"] for line in events(whole, "train")]
    assert losses == [line["loss"] for line in events(parts, "train")]
    assert losses[-1] < losses[0]


def test_complementary_masks_run_through_the_loop(convmae_config):
    run = pretrain(convmae_config(model={"complementary_masks": True}, steps=2, checkpoint_every=2))
    assert len(events(run, "train")) == 2


def test_a_pretrained_encoder_is_finetuned_and_resumed(convmae_config, finetune_config, monkeypatch):
    run = pretrain(convmae_config(steps=2))
    model = {"backbone": "convmae_small", "num_heads": 2, "weights": str(run)}
    options = {"model": model, "layer_decay": 0.65, "layer_decay_type": "group"}
    whole = finetune_config("whole", **options)
    metrics = finetune(whole)
    assert 0 <= metrics["accuracy"] <= 1
    config = finetune_config("parts", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            finetune(config)
    finetune(config)
    assert_same_tensors(last_state(whole.run.dir)["model"], last_state(config.run.dir)["model"])


def test_the_classifier_starts_from_the_encoders_weights(convmae_config):
    run = pretrain(convmae_config(steps=2))
    encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in last_state(run)["model"].items()
        if name.startswith("encoder.")
    }
    config = ClassifierConfig(backbone="convmae_small", num_heads=2)
    for weights in (str(run), encoder):  # a run folder, and a state dict
        classifier, depths = build_classifier(config, weights, num_classes=4, in_chans=3)
        state = classifier.state_dict()
        assert depths == (1, 1, 1)
        for name in encoder.keys() - {"norm.weight", "norm.bias"}:
            assert torch.equal(state[name], encoder[name]), name
        assert state["head.weight"].shape == (4, 16)


def test_the_originals_checkpoints_load(tmp_path):
    """Pretraining's with its decoder, and fine-tuning's with its norm, learnt positions and another head."""
    options: Any = {"depths": (1, 1, 1), "dims": (8, 8, 16), "num_heads": 2}
    method = fcmae.create_method(
        "convmae", backbone="convmae_small", image_size=224, decoder_dim=16, decoder_depth=1, decoder_heads=2,
        **options,
    )  # fmt: skip
    pretrained = {
        name.removeprefix("encoder.").removeprefix("decoder."): tensor
        for name, tensor in method.state_dict().items()
    }
    torch.save({"model": pretrained}, tmp_path / "pretrained.pth")
    config = ClassifierConfig(backbone="convmae_small", num_heads=2)
    path = str(tmp_path / "pretrained.pth")
    classifier, _ = build_classifier(config, path, num_classes=4, in_chans=3)
    kernel = classifier.state_dict()["blocks1.0.attn.weight"]
    assert torch.equal(kernel, pretrained["blocks1.0.attn.weight"])

    tuned = ConvMAEClassifier(**options, num_classes=9).state_dict()
    tuned["pos_embed"] = tuned["pos_embed"] + torch.randn(1, 196, 16)
    tuned["fc_norm.weight"] = torch.randn(16)
    classifier, _ = build_classifier(config, tuned, num_classes=4, in_chans=3)
    state = classifier.state_dict()
    assert torch.equal(state["fc_norm.weight"], tuned["fc_norm.weight"])
    assert torch.equal(state["pos_embed"], tuned["pos_embed"])


@pytest.mark.parametrize(
    ("options", "in_chans", "message"),
    [
        ({"num_heads": None}, 3, "model.num_heads: expected that of the weights, 2, got 6"),
        (
            {"num_heads": 2, "backbone": "convmae_base"},
            3,
            "expected convmae_small, that of the weights, got convmae_base",
        ),
        ({"num_heads": 2}, 1, "data.in_chans: expected that of the weights, 3, got 1"),
    ],
)
def test_weights_of_another_network_are_refused(convmae_config, options, in_chans, message):
    run = pretrain(convmae_config(steps=1))
    config = ClassifierConfig(**{"backbone": "convmae_small", **options})
    with pytest.raises(InputError, match=message):
        build_classifier(config, str(run), num_classes=4, in_chans=in_chans)


def test_foreign_weights_and_missing_ones_are_named(tmp_path):
    config = ClassifierConfig(backbone="convmae_small")
    whole = ConvMAEClassifier(depths=(1, 1, 1), dims=(8, 8, 16), num_heads=2, num_classes=4).state_dict()
    config = replace(config, num_heads=2)
    part = {name: tensor for name, tensor in whole.items() if name != "blocks2.0.conv1.bias"}
    for weights, message in (
        ({"stem.0.weight": torch.zeros(1)}, "expected keys of .* or ConvMAE"),
        (part, r"missing blocks2\.0\.conv1\.bias"),
        ({**whole, "blocks2.0.extra": torch.zeros(1)}, r"unexplained blocks2\.0\.extra"),
        (str(tmp_path), "expected step_"),
    ):
        with pytest.raises(InputError, match=message):
            build_classifier(config, weights, num_classes=4, in_chans=3)
    with pytest.raises(InputError, match="num_heads: expected none for convnextv2_atto"):
        build_classifier(
            ClassifierConfig(backbone="convnextv2_atto", num_heads=2), None, num_classes=4, in_chans=3
        )


# (parameter, its layer as in the original, its layer with the convolution stages spread out).
LAYERS = [
    ("patch_embed1.proj.weight", 0, 1),
    ("blocks1.0.attn.weight", 0, 1),
    ("blocks1.1.mlp.fc1.weight", 0, 2),
    ("patch_embed2.norm.bias", 0, 3),
    ("blocks2.1.conv2.weight", 0, 4),
    ("patch_embed3.proj.weight", 0, 5),
    ("patch_embed4.weight", 0, 5),
    ("blocks3.0.attn.qkv.weight", 1, 5),
    ("blocks3.10.mlp.fc2.bias", 11, 15),
    ("fc_norm.weight", 12, 16),
    ("head.weight", 12, 16),
]


@pytest.mark.parametrize(("name", "original", "spread"), LAYERS)
def test_layer_ids(name: str, original: int, spread: int):
    assert layer_id(name, depths=DEPTHS, kind="group") == original
    assert layer_id(name, depths=DEPTHS, kind="single") == spread


def test_every_parameter_of_base_has_a_layer_and_the_originals_rate():
    preset = find_preset("convmae_base")
    assert isinstance(preset, ConvMAEPreset)
    with torch.device("meta"):
        classifier = ConvMAEClassifier(**vars(preset), num_classes=2)
    scale = layer_scale(0.65, depths=preset.depths, kind="group")
    found = {scale(name) for name, _ in classifier.named_parameters()}
    assert sorted(found) == pytest.approx([0.65**power for power in range(12, -1, -1)])
    assert scale("blocks1.0.attn.weight") == pytest.approx(0.65**12)
