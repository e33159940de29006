"""Ours to timm and back: bit for bit, and no key unexplained."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from fcmae.convert import Architecture, detect_source, from_timm, open_source, to_timm
from fcmae.convert.networks.convnextv2 import from_shapes
from fcmae.errors import InputError
from fcmae.models import PRESETS, create_backbone

Weights = dict[str, Tensor]


def assert_same(a: Weights, b: Weights) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


def encoder_of(weights: Weights) -> Weights:
    return {
        key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "model",
    [
        {"backbone": "convnextv2_atto"},
        {"backbone": "convnextv2_tiny", "depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    ],
    ids=["atto", "small tiny"],
)
def test_round_trip_is_the_identity(
    model: dict[str, Any], dtype: torch.dtype, make_checkpoint: Callable[..., dict[str, Any]]
) -> None:
    weights = {k: v.to(dtype) for k, v in make_checkpoint(decoder_dim=16, **model)["model"].items()}
    there, report = to_timm(weights)
    back, _ = from_timm(there)
    assert_same(back, encoder_of(weights))
    assert set(report.mapped) | set(report.dropped) == set(weights)
    assert {key.split(".")[0] for key in report.dropped} == {"decoder"}
    again, _ = to_timm(back, open_source(there).architecture())
    assert_same(again, there)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("convnextv2")])
def test_every_size_is_known_by_timms_shapes(name: str) -> None:
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    architecture = from_shapes({f"encoder.{key}": tensor for key, tensor in expected.items()})
    assert architecture == Architecture(backbone=name)
    assert architecture.timm_shapes(num_classes=1000) == {k: v.shape for k, v in expected.items()}


def test_linear_layers_take_the_shape_of_timms_convolutions(small_checkpoint: dict[str, Any]) -> None:
    converted, report = to_timm(small_checkpoint["model"], open_source(small_checkpoint).architecture())
    assert converted["stages.0.blocks.0.mlp.fc1.weight"].shape == (32, 8, 1, 1)
    assert set(report.missing) == {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}
    assert set(report.missing.values()) == {"initialised by the classifier"}
    assert any("only pretraining has a decoder" in line for line in report.lines())


def test_source_is_told_by_its_keys(small_weights: Weights) -> None:
    assert detect_source(small_weights) == "fcmae"
    assert detect_source(encoder_of(small_weights)) == "timm"
    with pytest.raises(InputError, match=r"got a\.b, c, d, e, \.\.\. \(5 in all\)"):
        detect_source(dict.fromkeys(("a.b", "c", "d", "e", "f")))
    with pytest.raises(InputError, match="no keys"):
        detect_source({})
    with pytest.raises(InputError, match=r"expected auto, fcmae or .* timm or .*, got spark\."):
        to_timm(small_weights, source="spark")
    with pytest.raises(
        InputError, match=r"expected keys of ConvNeXt V2 or ViT or ConvMAE .*got encoder\.stem"
    ):
        to_timm(small_weights, source="timm")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.update({"encoder.stages.0.blocks.0.gamma": torch.ones(8)}), r"blocks\.0\.gamma \[8\]"),
        (lambda w: w.update({"optimizer.lr": torch.ones(1)}), r"unexplained optimizer\.lr \[1\]"),
        (
            lambda w: w.pop("encoder.stages.2.blocks.1.norm.bias"),
            r"missing stages\.2\.blocks\.1\.norm\.bias \[24\]",
        ),
        (
            lambda w: w.pop("encoder.stages.1.downsample.1.weight"),
            r"missing stages\.1\.downsample\.1\.weight",
        ),
        (
            lambda w: w.update({"encoder.stem.1.weight": torch.ones(9)}),
            r"encoder\.stem\.1\.weight \[9\] where \[8\] is needed",
        ),
        (
            lambda w: w.update({"encoder.stages.0.blocks.0.mlp.fc1.weight": torch.ones(8, 32)}),
            r"mlp\.fc1\.weight \[8, 32\] where \[32, 8",
        ),
    ],
    ids=["extra", "foreign", "missing", "missing downsample", "shape", "transposed"],
)
@pytest.mark.parametrize("declared", [True, False], ids=["with config", "bare"])
def test_unexplained_keys_are_refused(
    change: Callable[[Weights], object], told: str, declared: bool, small_checkpoint: dict[str, Any]
) -> None:
    weights = dict(small_checkpoint["model"])
    architecture = open_source(small_checkpoint).architecture() if declared else None
    change(weights)
    with pytest.raises(InputError, match=told) as refused:
        to_timm(weights, architecture)
    assert "\n" not in str(refused.value)


def test_wrong_config_is_refused(small_checkpoint: dict[str, Any]) -> None:
    small_checkpoint["config"]["model"]["dims"] = (8, 16, 24, 40)
    with pytest.raises(InputError, match=r"\[32, 24, 2, 2\] where \[40, 24, 2, 2\] is needed"):
        to_timm(small_checkpoint["model"], open_source(small_checkpoint).architecture())
    del small_checkpoint["config"]["model"]["dims"]
    with pytest.raises(InputError, match="got none for 'dims'"):
        open_source(small_checkpoint).architecture()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["encoder.stages.3.blocks.0.mlp.grn.weight", "decoder.mask_token"])
def test_non_finite_weights_are_named(key: str, value: float, small_weights: Weights) -> None:
    small_weights[key][0] = value
    with pytest.raises(InputError, match=f"NaN or infinity in {key}"):
        to_timm(small_weights)


def test_missing_telling_weight_and_stages_are_named(small_weights: Weights) -> None:
    stem = {k: v for k, v in small_weights.items() if k != "encoder.stages.1.blocks.0.conv_dw.weight"}
    with pytest.raises(InputError, match=r"got no encoder\.stages\.1\.blocks\.0\.conv_dw\.weight"):
        to_timm(stem)
    three = {k: v for k, v in small_weights.items() if "stages.3" not in k}
    with pytest.raises(InputError, match=r"got stages \[0, 1, 2\]"):
        to_timm(three)
    with pytest.raises(InputError, match="expected 4 stages"):
        Architecture(backbone="convnextv2_atto", depths=(1, 1))
    with pytest.raises(InputError, match="Did you mean convnextv2_atto"):
        Architecture(backbone="convnextv2_ato")


@pytest.mark.parametrize("stem_stride", [1, 2, 4, 8])
def test_custom_sizes_are_told_by_config_and_by_shapes(
    stem_stride: int, make_checkpoint: Callable[..., dict[str, Any]]
) -> None:
    sizes = {"depths": (1, 2, 1, 1), "dims": (8, 8, 12, 16), "stem_stride": stem_stride}
    checkpoint = make_checkpoint(
        backbone="convnextv2_tiny", patch_size=64, decoder_dim=16, in_chans=5, **sizes
    )
    expected = Architecture(backbone="convnextv2_tiny", in_chans=5, **sizes)
    assert open_source(checkpoint).architecture() == expected
    assert open_source(checkpoint["model"]).architecture() == expected
    converted, _ = to_timm(checkpoint["model"])
    model = expected.create_timm(num_classes=7, drop_path_rate=0.1)
    assert not set(converted) - set(model.state_dict())
    encoder = create_backbone("convnextv2_tiny", in_chans=5, **sizes)
    assert model.feature_info[3]["reduction"] == encoder.max_stride
    assert model(torch.zeros(1, 5, 64, 64)).shape == (1, 7)
    features = model.stages(model.stem(torch.zeros(1, 5, 64, 64)))
    assert features.shape[-1] == 64 // encoder.max_stride


def test_classifier_keeps_its_head(small_checkpoint: dict[str, Any]) -> None:
    model = open_source(small_checkpoint).architecture().create_timm(num_classes=7)
    converted, report = to_timm(model.state_dict())
    assert_same(converted, model.state_dict())
    assert not report.missing and not report.dropped
    assert converted["head.fc.weight"].shape == (7, 32)


def test_what_is_no_state_dict_is_refused() -> None:
    with pytest.raises(InputError, match=r"got lr \(float\), step \(int\)"):
        open_source({"lr": 0.1, "step": 3})
