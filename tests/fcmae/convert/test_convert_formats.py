"""Every format in and out: the identity bit for bit, the names of the real thing, recorded tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fcmae
from fcmae.convert import Architecture, convert_weights, detect_source, load_weights, open_source
from fcmae.convert.families import CONVNEXTV2
from fcmae.convert.formats.layouts import (
    MINKOWSKI,
    MINKOWSKI_DEPTHWISE,
    SPCONV_DEPTHWISE,
    WARPCONVNET,
    Layout,
)
from fcmae.convert.transfer import transfer
from fcmae.errors import InputError
from fcmae.models.blocks import ConvNeXtV2Block
from sparse_ops import ActiveSites, SparseImage

Weights = dict[str, Tensor]

GOLDEN = Path(__file__).parents[2] / "golden"
FORMATS = CONVNEXTV2.formats
SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def random_weights(shapes: dict[str, torch.Size]) -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def small_weights(num_classes: int) -> Weights:
    architecture = Architecture(backbone="convnextv2_tiny", **SMALL)
    return random_weights(architecture.our_shapes(num_classes=num_classes, decoder={}))


def exported(ours: Weights, name: str) -> Weights:
    """All that a format has a place for, in that format."""
    form = FORMATS[name]
    shapes = form.shapes_of({key: tensor.shape for key, tensor in ours.items() if form.from_ours(key)})
    kept = {key: tensor for key, tensor in ours.items() if form.from_ours(key)}
    return transfer(kept, source=FORMATS["fcmae"], target=form, target_shapes=shapes)[0]


def assert_same(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key].dtype == expected[key].dtype and torch.equal(actual[key], expected[key]), key


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=8, deadline=None)
@given(
    depths=st.tuples(*[st.integers(1, 2)] * 4),
    dims=st.tuples(*[st.integers(1, 5)] * 4),
    sizes=st.fixed_dictionaries({"in_chans": st.integers(1, 4), "kernel_size": st.sampled_from((1, 3, 5))}),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_round_trip_is_the_identity(
    name: str, depths: tuple[int, ...], dims: tuple[int, ...], sizes: dict[str, int], dtype: torch.dtype
) -> None:
    architecture = Architecture(backbone="convnextv2_tiny", depths=depths, dims=dims, stem_stride=2, **sizes)
    decoder = random_weights(
        {"decoder.mask_token": torch.Size([3]), "decoder.pred.weight": torch.Size([12, 3])}
    )
    decoder["decoder.blocks.0.norm.weight"] = torch.ones(3)
    ours = random_weights(architecture.our_shapes(num_classes=7, decoder=decoder))
    ours = {key: tensor.to(dtype) for key, tensor in ours.items()}
    theirs = exported(ours, name)
    assert detect_source(theirs) == name
    opened = open_source(theirs)
    kept = {key: tensor for key, tensor in ours.items() if FORMATS[name].from_ours(key)}
    assert {key for key in ours if key.startswith("encoder.")} <= kept.keys()
    back, report = transfer(
        theirs,
        source=opened.format,
        target=FORMATS["fcmae"],
        target_shapes={key: tensor.shape for key, tensor in kept.items()},
    )
    assert_same(back, kept)
    assert not report.dropped and not report.missing and set(report.mapped) == set(theirs)
    assert opened.architecture() == architecture


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", ["official", "transformers", "mmpretrain", "fcmae"])
def test_any_format_becomes_any_other(source: str, target: str) -> None:
    ours = small_weights(5)
    converted, _ = convert_weights(exported(ours, source), target)
    has_head = any(FORMATS[source].from_ours(key) for key in ours if key.startswith("head."))
    expected = {key: value for key, value in ours.items() if has_head or not key.startswith("head.")}
    assert_same(converted, exported(expected, target))


def test_formats_are_told_apart() -> None:
    ours = small_weights(5)
    both = {**exported(ours, "timm"), **exported(ours, "official")}
    with pytest.raises(InputError, match=r"got those of timm \(ConvNeXt V2\) and official .*Add --source"):
        open_source(both)
    for name in FORMATS:
        matching = [other for other in FORMATS if FORMATS[other].matches(exported(ours, name))]
        assert matching == [name]


def test_another_architecture_is_named() -> None:
    with torch.device("meta"):
        resnet = timm.create_model("resnet18").state_dict()
    v1 = {**exported(small_weights(5), "official"), "stages.0.0.gamma": torch.ones(8)}
    for weights, looks in ((resnet, "a ResNet"), (v1, "ConvNeXt V1")):
        with pytest.raises(InputError, match=rf"looks like {looks}\. Give a checkpoint of one of these"):
            open_source(weights)


def test_timms_v1_is_the_network_with_layer_scale() -> None:
    weights = timm.create_model("convnext_femto", num_classes=3).state_dict()
    source = open_source(weights)
    assert source.architecture() == Architecture(backbone="convnextv2_femto", gating="layer_scale")
    assert_same(convert_weights(weights, "timm")[0], weights)


def test_prefixes_may_be_absent_and_a_key_may_not_come_twice() -> None:
    ours = small_weights(5)
    for name, prefix in (("transformers", "convnextv2."), ("mmpretrain", "backbone.")):
        theirs = exported(ours, name)
        bare = {key.removeprefix(prefix): tensor for key, tensor in theirs.items()}
        assert bare.keys() != theirs.keys()
        assert_same(convert_weights(bare, name)[0], theirs)
        first = next(key for key in theirs if key.startswith(prefix))
        with pytest.raises(InputError, match=r"for the second time, after"):
            convert_weights({**theirs, first.removeprefix(prefix): theirs[first]}, "timm")
    wrapped = {f"module.{key}": tensor for key, tensor in exported(ours, "official").items()}
    assert_same(convert_weights({"model": wrapped}, "fcmae")[0], ours)


@pytest.mark.parametrize("headless", [False, True])
def test_transformers_own_model_has_these_names_and_shapes(headless: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers: not installed")
    config = transformers.ConvNextV2Config(
        hidden_sizes=list(SMALL["dims"]), depths=list(SMALL["depths"]), num_labels=5, layer_norm_eps=1e-6
    )
    kind = transformers.ConvNextV2Model if headless else transformers.ConvNextV2ForImageClassification
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    converted, report = convert_weights(model.state_dict(), "timm")
    assert not report.dropped and report.source == "transformers"
    dense = timm.create_model("convnextv2_tiny", num_classes=5, **SMALL).eval()
    load_weights(dense, converted)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        if headless:
            actual, expected = dense.forward_features(images), model(images).last_hidden_state
        else:
            actual, expected = dense(images), model(images).logits
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    again = kind(config)
    load_weights(again, converted)
    if not headless:
        assert_same(dict(again.state_dict()), dict(model.state_dict()))


def golden(name: str) -> dict[str, Any]:
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("me_dwconv_k7_patch", MINKOWSKI_DEPTHWISE),
        ("me_dwconv_k3_irregular", MINKOWSKI_DEPTHWISE),
        ("me_subm3x3", MINKOWSKI),
        ("me_down2x2", MINKOWSKI),
    ],
)
def test_minkowski_kernels_are_those_that_were_recorded(name: str, layout: Layout) -> None:
    record = golden(name)
    assert torch.equal(layout.to_ours(record["me_kernel"]), record["weight"])
    assert torch.equal(layout.from_ours(record["weight"]), record["me_kernel"])


def test_recorded_block_runs_from_its_own_checkpoint_names() -> None:
    record = golden("me_block")
    form = FORMATS["minkowski"]
    keys = {key: f"encoder.stages.0.0.{key}" for key in record["state"]}
    names = {key: form.to_ours(theirs) or "" for key, theirs in keys.items()}
    block = ConvNeXtV2Block(8, grn_scope="batch", backend="reference").double()
    block.load_state_dict(
        {
            names[key].removeprefix("encoder.stages.0.blocks.0."): form.import_tensor(names[key], tensor)
            for key, tensor in record["state"].items()
        }
    )
    sites = ActiveSites.from_mask(record["mask"][:, 0].bool())
    x = SparseImage.from_dense(record["x"].permute(0, 2, 3, 1), sites)
    features = x.features.requires_grad_()
    out = block(SparseImage(features, sites))
    assert isinstance(out, SparseImage)
    bound = 1e-5 * record["out"].abs().max()
    assert (out.densify().permute(0, 3, 1, 2) - record["out"]).abs().max() < bound
    out.features.backward(SparseImage.from_dense(record["grad_out"].permute(0, 2, 3, 1), sites).features)
    parameters = dict(block.named_parameters())
    for key, expected in record["grads"].items():
        gradient = parameters[names[key].removeprefix("encoder.stages.0.blocks.0.")].grad
        difference = (gradient - form.import_tensor(names[key], expected)).abs().max()
        assert difference < 1e-5 * expected.abs().max(), key


@pytest.mark.parametrize(
    ("layout", "shape", "told"),
    [
        (MINKOWSKI, (5, 3, 4), "offsets of a square kernel, got 5"),
        (MINKOWSKI, (4,), "2 or 3 dimensions, got 1"),
        (MINKOWSKI_DEPTHWISE, (4, 3, 3), "expected 2 dimensions, got 3"),
        (WARPCONVNET, (3, 3), "expected 3 dimensions, got 2"),
        (SPCONV_DEPTHWISE, (3, 3, 3, 2), r"layout \[C, k, k, C\], got 2 inputs and 3 outputs"),
    ],
)
def test_impossible_layouts_are_refused(layout: Layout, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        layout.to_ours(torch.ones(shape))


def test_one_offset_is_not_taken_for_a_depthwise_kernel() -> None:
    matrix = torch.arange(6.0).view(2, 3)  # [C_in, C_out] of MinkowskiEngine's 1x1 kernel
    assert torch.equal(MINKOWSKI.to_ours(matrix), matrix.t().reshape(3, 2, 1, 1))
    assert torch.equal(MINKOWSKI.from_ours(MINKOWSKI.to_ours(matrix)), matrix)
    row = torch.arange(3.0).view(1, 3)
    assert torch.equal(MINKOWSKI_DEPTHWISE.to_ours(row), row.view(3, 1, 1, 1))


def test_regular_kernel_in_a_depthwise_place_is_refused_by_its_key() -> None:
    ours = small_weights(0)
    theirs = exported(ours, "spconv")
    theirs["encoder.stages.2.1.dwconv.weight"][0, 3, 3, 1] = 0.5
    with pytest.raises(InputError, match=r"encoder\.stages\.2\.1\.dwconv\.weight.*got a regular one"):
        convert_weights(theirs, "timm")


def test_spark_decoder_is_dropped_with_its_reason() -> None:
    ours = small_weights(0)
    spark = {
        **exported(ours, "mmpretrain"),
        "mask_tokens.0": torch.zeros(1, 32, 1, 1),
        "enc_dec_norms.0.running_mean": torch.zeros(32),
        "enc_dec_projectors.1.weight": torch.zeros(16, 16, 3, 3),
        "neck.decoder_layers.0.conv.weight": torch.zeros(4, 4, 3, 3),
    }
    converted, report = convert_weights(spark, "fcmae")
    assert_same(converted, ours)
    assert len(report.dropped) == 4 and set(report.dropped.values()) == {
        "SparK's decoder is a U-Net, which no method here has"
    }


def test_original_pretraining_checkpoint_gives_the_whole_method(
    make_checkpoint: Callable[..., dict[str, Any]],
) -> None:
    checkpoint = make_checkpoint(backbone="convnextv2_tiny", decoder_dim=16, **SMALL)
    original = exported(checkpoint["model"], "minkowski")
    assert original["encoder.stages.0.0.dwconv.kernel"].shape == (49, 8)
    assert original["encoder.downsample_layers.1.1.kernel"].shape == (4, 8, 16)
    assert original["encoder.downsample_layers.1.1.bias"].shape == (1, 16)
    assert original["mask_token"].shape == (1, 16, 1, 1) and original["proj.weight"].shape == (16, 32, 1, 1)
    assert original["decoder.0.grn.gamma"].shape == (1, 1, 1, 64)
    encoder = fcmae.create_backbone("convnextv2_tiny", **SMALL)
    method = fcmae.create_method("fcmae", backbone=encoder, image_size=128, decoder_dim=16)
    report = load_weights(method, {"model": original, "epoch": 799})
    assert report.source == "minkowski" and not report.missing and not report.dropped
    assert_same(dict(method.state_dict()), dict(checkpoint["model"]))
