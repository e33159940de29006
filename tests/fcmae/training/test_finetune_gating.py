"""Fine-tuning what blocks have in GRN's place: carried, left out, added; and what conversion makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from training_runs import Interruption, interrupt_after, last_state

import fcmae
from fcmae.config import GATINGS, ClassifierConfig
from fcmae.convert import convert_weights, open_source
from fcmae.convert.command import convert_checkpoint
from fcmae.errors import InputError
from fcmae.evaluation.encoders import load_encoder
from fcmae.models import ConvNeXtClassifier, ConvNeXtV2Encoder
from fcmae.models.gates import OWN_GATES
from fcmae.training.classifier import build_classifier
from fcmae.training.engine.checkpoints import require_same_model
from fcmae.training.finetune import finetune
from fcmae.training.pretrain import pretrain

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def small_encoder(gating: str) -> ConvNeXtV2Encoder:
    """Every parameter matters: at the start GRN is the identity."""
    encoder = fcmae.create_backbone("convnextv2_atto", gating=gating, in_chans=1, **SMALL)
    assert isinstance(encoder, ConvNeXtV2Encoder)
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return encoder


def saved(encoder: ConvNeXtV2Encoder) -> dict[str, Any]:
    return {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}


def classifier_of(weights: Any, gating: str | None = None, **options: Any) -> nn.Module:
    model = ClassifierConfig(backbone="convnextv2_atto", gating=gating, **options)
    return build_classifier(model, weights, num_classes=5, in_chans=1)[0].eval()


IMAGES = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(module: Any) -> torch.Tensor:
    if isinstance(module, ConvNeXtClassifier) or not isinstance(module, ConvNeXtV2Encoder):
        return module.forward_features(IMAGES)
    return module(IMAGES)[-1].permute(0, 3, 1, 2)


@pytest.mark.parametrize("gating", GATINGS)
def test_the_classifier_is_the_encoder(gating: str) -> None:
    encoder = small_encoder(gating)
    classifier = classifier_of(saved(encoder))
    assert isinstance(classifier, ConvNeXtClassifier) == (gating in OWN_GATES)
    assert (features(classifier) - features(encoder)).abs().max() < 1e-4 * features(encoder).abs().max()
    assert classifier(IMAGES).shape == (2, 5)
    # Its own checkpoint tells the gate again, as fine-tuning resumes and `fcmae evaluate` reads it.
    architecture = open_source(classifier.state_dict()).architecture()
    assert vars(architecture)["gating"] == gating
    again = classifier_of(classifier.state_dict())
    assert again.state_dict().keys() == classifier.state_dict().keys()


def test_our_dense_network_is_timms_where_both_exist() -> None:
    sizes = {"in_chans": 1, "num_classes": 5, "drop_path_rate": 0.0, **SMALL}
    theirs = timm.create_model("convnextv2_tiny", **sizes)
    ours = ConvNeXtClassifier(**sizes)
    for model in (theirs, ours):
        weight, bias = model.head.fc.weight.detach(), model.head.fc.bias.detach()
        assert abs(float(weight.std()) - 0.02) < 0.003 and not bool(bias.any())
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.double()(IMAGES.double()), theirs.double()(IMAGES.double()))


def test_grn_only_in_pretraining_is_the_network_without_it() -> None:
    encoder = small_encoder("grn")
    classifier = classifier_of(saved(encoder), "none")
    assert not any("grn" in name for name in classifier.state_dict())
    for name, parameter in encoder.named_parameters():
        if ".grn." in name:
            nn.init.zeros_(parameter)  # the identity
    assert (features(classifier) - features(encoder)).abs().max() < 1e-4 * features(encoder).abs().max()


def test_grn_only_in_fine_tuning_begins_as_the_identity() -> None:
    encoder = small_encoder("none")
    classifier = classifier_of(saved(encoder), "grn")
    grn = [parameter for name, parameter in classifier.named_parameters() if ".grn." in name]
    assert len(grn) == 2 * 5 and not any(bool(parameter.any()) for parameter in grn)
    assert (features(classifier) - features(encoder)).abs().max() < 1e-4 * features(encoder).abs().max()
    classifier(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in grn)


def test_what_cannot_be_exchanged_is_named() -> None:
    with pytest.raises(InputError, match="expected se, that of the weights, or none, got grn"):
        classifier_of(saved(small_encoder("se")), "grn")
    with pytest.raises(InputError, match="expected it left out for vit_tiny_patch16, got grn"):
        build_classifier(
            ClassifierConfig(backbone="vit_tiny_patch16", gating="grn"), None, num_classes=5, in_chans=1
        )


@pytest.mark.parametrize(("before", "gating"), [("cbam", None), ("grn", "none"), ("none", "grn_l1")])
def test_a_run_resumes_with_its_gate(
    before: str,
    gating: str | None,
    pretrain_config: Callable[..., Any],
    finetune_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretrained = pretrain(pretrain_config("pretrained", steps=1, model={"gating": before}))
    model = {"weights": str(pretrained), "gating": gating}
    metrics = finetune(finetune_config("whole", model=model, evaluate_every=6))
    config = finetune_config("parts", model=model, evaluate_every=6, checkpoint_every=3)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interruption):
            finetune(config)
    assert finetune(config) == metrics
    loaded = load_encoder(Path(config.run.dir), in_chans=3)
    assert vars(loaded.network)["gating"] == (gating or before)
    assert torch.equal(
        loaded.encoder.state_dict()["stem.0.weight"], last_state(config.run.dir)["model"]["stem.0.weight"]
    )


def test_a_checkpoint_of_an_earlier_version_had_the_defaults(pretrain_config: Callable[..., Any]) -> None:
    folder = pretrain(pretrain_config("run", steps=1))
    config = last_state(folder)["config"]
    older = {**config, "model": {name: v for name, v in config["model"].items() if name != "gating"}}
    require_same_model(older, config, path=folder)
    other = {**config, "model": {**config["model"], "gating": "se"}}
    with pytest.raises(InputError, match=r'model\.gating = "grn" \(got "se"\)'):
        require_same_model(older, other, path=folder)


@pytest.mark.parametrize(("gating", "target"), [("layer_scale", "timm"), ("none", "timm"), ("se", "fcmae")])
def test_conversion_proves_the_same_outputs(
    gating: str, target: str, pretrain_config: Callable[..., Any], tmp_path: Path
) -> None:
    folder = pretrain(pretrain_config("run", steps=1, model={"gating": gating}))
    report = convert_checkpoint(folder, tmp_path / "weights.pth", target=target, log=lambda line: None)
    assert len(report.differences) == 8
    for other in {"timm", "official", "transformers", "mmpretrain"} - {target}:
        if gating == "se" or other != "timm":
            with pytest.raises(InputError, match=f"for {other}, got gating {gating}"):
                convert_weights(open_source(folder).weights, other)
