"""load_weights: every kind of module, every kind of source, all or nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import fcmae
from fcmae.convert import load_weights, to_timm
from fcmae.errors import InputError
from fcmae.models import ConvNeXtV2Encoder

SIZES = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def small_encoder() -> ConvNeXtV2Encoder:
    return fcmae.create_backbone("convnextv2_atto", **SIZES)


def small_classifier(num_classes: int = 5) -> nn.Module:
    return timm.create_model("convnextv2_atto", num_classes=num_classes, **SIZES)


def test_loaded_timm_weights_give_timms_features() -> None:
    torch.manual_seed(0)
    dense = timm.create_model("convnextv2_atto").eval()
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if "grn" in name:  # zero at initialisation, and then GRN does nothing
                parameter.normal_()
    encoder = fcmae.create_backbone("convnextv2_atto").eval()
    report = fcmae.load_weights(encoder, dense.state_dict())
    assert report.source == "timm" and not report.missing
    assert set(report.dropped) == {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = dense.forward_features(images).permute(0, 2, 3, 1)
        found = encoder(images)[-1]
        sparse = encoder(images, visible=torch.ones(2, 2, 3, dtype=torch.bool))[-1].densify()
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-4
    assert (sparse - expected).abs().max() < 1e-4


def test_encoder_takes_a_run_folder_and_leaves_the_decoder(
    small_run: Path, small_weights: dict[str, Tensor]
) -> None:
    encoder = small_encoder()
    report = load_weights(encoder, small_run)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, small_weights[f"encoder.{name}"])
    assert {key.split(".")[0] for key in report.dropped} == {"decoder"}


def test_method_takes_everything(small_checkpoint: dict[str, Any]) -> None:
    method = fcmae.create_method("fcmae", backbone=small_encoder(), image_size=128, decoder_dim=16)
    report = load_weights(method, small_checkpoint)
    assert not report.dropped and not report.missing
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, small_checkpoint["model"][name])


def test_method_refuses_another_decoder(small_checkpoint: dict[str, Any]) -> None:
    method = fcmae.create_method("fcmae", backbone=small_encoder(), image_size=128, decoder_dim=24)
    with pytest.raises(InputError, match=r"decoder\.mask_token \[16\] where \[24\] is needed"):
        load_weights(method, small_checkpoint)
    deeper = fcmae.create_method(
        "fcmae", backbone=small_encoder(), image_size=128, decoder_dim=16, decoder_depth=2
    )
    with pytest.raises(InputError, match=r"missing decoder\.blocks\.1"):
        load_weights(deeper, small_checkpoint)


def test_method_takes_a_dense_encoder(small_weights: dict[str, Tensor]) -> None:
    method = fcmae.create_method("fcmae", backbone=small_encoder(), image_size=128, decoder_dim=16)
    report = load_weights(method, to_timm(small_weights)[0])
    assert set(report.missing.values()) == {"initialised by the method"}
    assert torch.equal(method.encoder.state_dict()["stem.0.weight"], small_weights["encoder.stem.0.weight"])


def test_classifier_keeps_its_own_head(small_weights: dict[str, Tensor]) -> None:
    model = small_classifier()
    head = model.state_dict()["head.fc.weight"].clone()
    report = load_weights(model, small_weights)
    assert set(report.missing) == {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}
    state = model.state_dict()
    assert torch.equal(state["head.fc.weight"], head)
    fc1 = "stages.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(state[fc1].flatten(1), small_weights[f"encoder.{fc1}"])


def test_classifier_of_other_classes_reports_the_head(small_weights: dict[str, Tensor]) -> None:
    source, target = small_classifier(7), small_classifier(5)
    report = load_weights(target, source.state_dict())
    assert set(report.missing) == set(report.dropped) == {"head.fc.weight", "head.fc.bias"}
    assert "[7, 32] does not fit the target's [5, 32]" in report.dropped["head.fc.weight"]
    same = load_weights(small_classifier(7), source.state_dict())
    assert not same.missing and not same.dropped


def test_nothing_is_loaded_when_a_key_is_wrong(small_weights: dict[str, Tensor]) -> None:
    encoder = small_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    small_weights["encoder.stages.3.blocks.0.norm.weight"] = torch.ones(31)
    with pytest.raises(InputError, match=r"\[31\] where \[32\] is needed"):
        load_weights(encoder, small_weights)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_other_modules_are_refused(
    small_weights: dict[str, Tensor], make_checkpoint: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(InputError, match="got weight, bias"):
        load_weights(nn.Linear(2, 2), small_weights)
    with pytest.raises(InputError, match="is needed"):
        load_weights(fcmae.create_backbone("convnextv2_atto"), small_weights)
    v1 = timm.create_model("convnext_atto", **SIZES)
    with pytest.raises(InputError, match=r"unexplained encoder\.stages\.0\.blocks\.0\.mlp\.grn"):
        load_weights(v1, small_weights)


def test_a_damaged_head_is_no_head_of_other_classes() -> None:
    whole = small_classifier(7).state_dict()
    for lost in ("head.fc.bias", "head.norm.weight"):
        with pytest.raises(InputError, match=f"missing {lost}"):
            load_weights(small_classifier(7), {key: whole[key] for key in whole if key != lost})
    with pytest.raises(InputError, match=r"head\.fc\.weight \[7, 20\] where \[7, 32\] is needed"):
        load_weights(small_classifier(7), {**whole, "head.fc.weight": torch.ones(7, 20)})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_from_inside_a_wrapper_are_read(prefix: str, small_weights: dict[str, Tensor]) -> None:
    wrapped = {f"{prefix}{key}": tensor for key, tensor in small_weights.items()}
    encoder = small_encoder()
    load_weights(encoder, {"model": wrapped})
    assert torch.equal(encoder.state_dict()["stem.0.weight"], small_weights["encoder.stem.0.weight"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "strided, float8_e4m3fn"),
        (lambda tensor: tensor.to(torch.int8), "strided, int8"),
        (lambda tensor: tensor.to_sparse(), "sparse_coo, float32"),
        (lambda tensor: tensor.to("meta"), "meta, float32"),
    ],
)
def test_tensors_that_hold_no_plain_numbers_are_refused(
    change: Callable[[Tensor], Tensor], told: str, small_weights: dict[str, Tensor]
) -> None:
    key = "encoder.stages.3.blocks.0.norm.weight"
    with pytest.raises(InputError, match=f"{key} \\({told}\\)"):
        load_weights(small_encoder(), {**small_weights, key: change(small_weights[key])})


def test_compiled_modules_are_filled(small_weights: dict[str, Tensor]) -> None:
    encoder = small_encoder()
    load_weights(torch.compile(encoder), small_weights)  # type: ignore[arg-type]
    assert torch.equal(encoder.state_dict()["stem.0.weight"], small_weights["encoder.stem.0.weight"])
