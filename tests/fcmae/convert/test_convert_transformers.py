"""ViT and ConvMAE: the formats of MAE, MSN, ConvMAE, timm and transformers, and our own checkpoints."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fcmae
from fcmae.config import ConvMAEConfig, DataConfig, MAEConfig, MSNConfig, PretrainConfig
from fcmae.convert import convert_weights, detect_source, load_weights, open_source
from fcmae.convert.command import convert_checkpoint
from fcmae.convert.deploy.onnx_export import OnnxOptions
from fcmae.convert.families import CONVMAE, VIT, Family
from fcmae.convert.files import read_checkpoint
from fcmae.convert.networks.convmae import ConvMAEArchitecture
from fcmae.convert.networks.network import Network
from fcmae.convert.networks.vit import ViTArchitecture
from fcmae.convert.transfer import transfer
from fcmae.convert.verify.differences import check_differences
from fcmae.errors import InputError
from fcmae.methods import from_config

Weights = dict[str, Tensor]
DECODER = {
    "decoder.mask_token": (1, 1, 8),
    "decoder.decoder_pred.weight": (12, 8),
    "decoder.decoder_pos_embed": (1, 7, 8),
    "decoder.decoder_blocks.0.x": (1,),
    "stage1_output_decode.weight": (1,),
}


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2, generator=generator)


def random_weights(
    family: Family, network: Network, *, num_classes: int = 0, decoder: bool = True
) -> Weights:
    parts = {name: torch.ones(shape) for name, shape in DECODER.items()} if decoder else {}
    if family is VIT:
        parts.pop("stage1_output_decode.weight", None)
    shapes = network.our_shapes(num_classes=num_classes, decoder=parts)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def exported(family: Family, ours: Weights, name: str) -> Weights:
    form = family.formats[name]
    kept = {key: tensor for key, tensor in ours.items() if form.from_ours(key)}
    shapes = form.shapes_of({key: tensor.shape for key, tensor in kept.items()})
    return form.split(transfer(kept, source=family.formats["fcmae"], target=form, target_shapes=shapes)[0])


def assert_same(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key].dtype == expected[key].dtype and torch.equal(actual[key], expected[key]), key


def vit(**sizes: Any) -> ViTArchitecture:
    options = {"depth": 2, "dim": 12, "num_heads": 3, "patch_size": 8, "grid": (3, 3)}
    return ViTArchitecture(backbone="vit", **{**options, **sizes})


def convmae(**sizes: Any) -> ConvMAEArchitecture:
    options = {"depths": (1, 2, 1), "dims": (8, 12, 16), "num_heads": 2, "grid": (2, 2)}
    return ConvMAEArchitecture(backbone="convmae", **{**options, **sizes})


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in (VIT, CONVMAE) for name in family.formats],
    ids=lambda value: value.name if isinstance(value, Family) else value,
)
@settings(max_examples=5, deadline=None)
@given(
    depth=st.integers(1, 3),
    dim=st.sampled_from((4, 8, 16)),
    side=st.integers(1, 3),
    in_chans=st.integers(1, 4),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_round_trip_is_the_identity(
    family: Family, name: str, depth: int, dim: int, side: int, in_chans: int, dtype: torch.dtype
) -> None:
    sizes: dict[str, Any] = {"grid": (side, side), "in_chans": in_chans, "num_heads": None}
    network = vit(depth=depth, dim=dim, **sizes) if family is VIT else convmae(dims=(4, 8, dim), **sizes)
    ours = {key: tensor.to(dtype) for key, tensor in random_weights(family, network, num_classes=5).items()}
    form = family.formats[name]
    if name == "timm":  # a decoder makes it MAE's
        ours = {key: tensor for key, tensor in ours.items() if not key.startswith("decoder.")}
    theirs = exported(family, ours, name)
    if name == "msn":
        theirs["fc.fc1.weight"] = torch.zeros(4, dim, dtype=dtype)
    opened = open_source(theirs)
    assert (opened.family, opened.format) == (family, form) and detect_source(theirs) == name
    kept = {key: tensor for key, tensor in ours.items() if form.from_ours(key)}
    assert {key for key in ours if key.startswith("encoder.")} <= kept.keys()
    shapes = {key: tensor.shape for key, tensor in kept.items()}
    back, _ = transfer(opened.weights, source=form, target=family.formats["fcmae"], target_shapes=shapes)
    assert_same(back, kept)
    assert dataclasses.replace(opened.architecture(), backbone="") == dataclasses.replace(  # type: ignore[type-var]
        network, backbone=""
    )


def timm_vit(*, num_classes: int = 5, pool: str = "token") -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, num_classes=num_classes, global_pool=pool, depth=2
    ).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_classifiers_of_timm_and_mae_run_in_our_encoder(pool: str, tmp_path: Path) -> None:
    model = timm_vit(pool=pool)  # avg: what MAE fine-tunes, with fc_norm instead of norm
    path = tmp_path / "classifier.pth"
    torch.save({"model": model.state_dict()}, path)
    architecture = vit(depth=2, dim=192, patch_size=16, pools_patches=pool == "avg")
    ours = open_source(path).ours()
    for fold in (False, True):
        converted = model.state_dict()
        if fold:
            from fcmae.convert.deploy.fold import fold_layer_norm

            converted, done = fold_layer_norm(converted, VIT.formats["timm"], VIT.folds)
            assert len(done) == 4 + (pool == "avg")
        found = VIT.compare(ours, converted, VIT.formats["timm"], architecture)
        check_differences(found)
        assert [difference.stage for difference in found] == ["tokens", "logits", "tokens"]
    broken = {**model.state_dict(), "head.bias": model.state_dict()["head.bias"].flip(0)}
    with pytest.raises(InputError, match="logits"):
        check_differences(VIT.compare(ours, broken, VIT.formats["timm"], architecture))
    with pytest.raises(InputError, match=r"num_heads: expected a preset .*--no-verify"):
        convert_checkpoint(path, tmp_path / "out.pth", log=lambda line: None)
    pytest.importorskip("onnxscript", reason="onnxscript: not installed")
    with pytest.raises(InputError, match="num_heads"):
        onnx = OnnxOptions(path=tmp_path / "graph.onnx")
        convert_checkpoint(path, onnx=onnx, verify=False, log=lambda line: None)
    report = convert_checkpoint(path, tmp_path / "out.pth", verify=False, log=lambda line: None)
    assert report.out is not None and not report.dropped and not report.missing
    assert_same(read_checkpoint(report.out)["state_dict"], dict(model.state_dict()))


def checkpoint(model: Any, **data: Any) -> dict[str, Any]:
    """What a pretraining run saves."""
    config = PretrainConfig(data=DataConfig(source="digits", **{"image_size": 64, **data}), model=model)
    method = from_config(config.model, config.data)
    randomise(method)
    return {
        "format": "fcmae-1",
        "kind": "pretrain",
        "config": dataclasses.asdict(config),
        "step": 1,
        "model": method.state_dict(),
    }


MAE_MODEL = MAEConfig(
    backbone="vit_tiny_patch16", depths=(2,), dims=(12,), num_heads=3, decoder_dim=8, decoder_depth=1,
    decoder_heads=2,
)  # fmt: skip
CONVMAE_MODEL = ConvMAEConfig(
    backbone="convmae_small", depths=(1, 1, 2), dims=(8, 8, 12), num_heads=3, decoder_dim=8, decoder_depth=1,
    decoder_heads=2,
)  # fmt: skip


@pytest.mark.parametrize("target", ["timm", "official", "transformers", "fcmae"])
def test_our_mae_run_is_verified_in_every_target(target: str, tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.pt"
    saved = checkpoint(MAE_MODEL)
    torch.save(saved, path)
    report = convert_checkpoint(
        path, tmp_path / "out.safetensors", target=target, fold=True, log=lambda line: None
    )
    assert len(report.differences) == 2 and report.out is not None
    assert (any("decoder" in key for key in report.dropped)) == (target == "timm")
    plain = convert_checkpoint(path, tmp_path / "plain.pth", target=target, log=lambda line: None)
    assert plain.out is not None
    method = from_config(MAE_MODEL, DataConfig(source="digits", image_size=64))
    result = load_weights(method, plain.out)
    loaded = method.state_dict()
    assert all(torch.equal(loaded[key], saved["model"][key]) for key in loaded if key.startswith("encoder."))
    assert set(result.missing.values()) == ({"initialised by the method"} if target == "timm" else set())


@pytest.mark.parametrize("target", ["official", "fcmae"])
def test_our_convmae_run_is_verified_in_every_target(target: str, tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.pt"
    saved = checkpoint(CONVMAE_MODEL)
    torch.save(saved, path)
    report = convert_checkpoint(path, tmp_path / "out.pth", target=target, fold=True, log=lambda line: None)
    assert [found.stage for found in report.differences] == ["stage 0", "stage 1", "stage 2"] * 2
    assert not report.dropped and len(report.folded) == 2 * 4
    converted, _ = convert_weights(saved, target)
    method = from_config(CONVMAE_MODEL, DataConfig(source="digits", image_size=64))
    assert not load_weights(method, converted).missing
    assert_same(dict(method.state_dict()), dict(saved["model"]))
    with pytest.raises(InputError, match="target: expected fcmae or official for ConvMAE, got timm"):
        convert_checkpoint(path, tmp_path / "timm.pth", log=lambda line: None)
    wrong = {
        **converted,
        (key := next(key for key in converted if "conv2.bias" in key)): converted[key].flip(0),
    }
    opened = open_source(saved)
    with pytest.raises(InputError, match="verify"):
        check_differences(
            CONVMAE.compare(opened.ours(), wrong, CONVMAE.formats[target], opened.architecture())
        )


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
        ("vit_tiny_patch16", {"depths": (1,), "dims": (12,), "num_heads": 3}),
    ],
)
def test_of_our_msn_run_the_target_network_is_taken(
    backbone: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = MSNConfig(backbone=backbone, hidden_dim=8, output_dim=4, prototypes=4, mask_ratio=0.5, **options)
    path = tmp_path / "step_00000001.pt"
    saved = checkpoint(model)
    torch.save(saved, path)
    lines: list[str] = []
    report = convert_checkpoint(path, tmp_path / "out.pth", log=lines.append)
    assert report.source == "fcmae_msn" and report.differences
    assert any("target network was taken" in line for line in lines)
    assert any(key.startswith("encoder.") for key in report.dropped) and "prototypes" in report.dropped
    encoder = fcmae.create_backbone(backbone, **options)
    load_weights(encoder, report.out or "")
    with pytest.raises(InputError, match="expected one encoder, got MSN, which has two"):
        load_weights(fcmae.create_method("msn", backbone=encoder, image_size=64), report.out or "")
    taken = encoder.state_dict()
    target = {
        key.removeprefix("target_encoder."): tensor
        for key, tensor in saved["model"].items()
        if key.startswith("target_encoder.")
    }
    name = "norm.weight" if backbone.startswith("vit") else "stem.1.weight"
    assert torch.equal(taken[name], target[name])
    assert not torch.equal(taken[name], saved["model"][f"encoder.{name}"])


def test_original_msn_checkpoint_gives_its_target_encoder() -> None:
    ours = random_weights(VIT, vit(), decoder=False)
    network = {f"module.{key}": tensor for key, tensor in exported(VIT, ours, "msn").items()}
    head = {"module.fc.fc1.weight": torch.zeros(4, 12), "module.fc.bn1.running_mean": torch.zeros(4)}
    other = {key: torch.zeros_like(tensor) for key, tensor in network.items()}
    saved = {"encoder": {**other, **head}, "target_encoder": {**network, **head}, "epoch": 800}
    converted, report = convert_weights(saved, "fcmae")
    assert_same(converted, ours)
    assert report.source == "msn" and set(report.dropped.values()) == {
        "only pretraining has a projection head"
    }


@pytest.fixture
def vit_mae(tmp_path: Path) -> tuple[nn.Module, Path]:
    """(transformers' own model with random weights, the file that it writes)."""
    transformers = pytest.importorskip("transformers", reason="transformers: not installed")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    decoder = {f"decoder_{key}": value for key, value in sizes.items()}
    config = transformers.ViTMAEConfig(
        **sizes, **decoder, image_size=24, patch_size=8, layer_norm_eps=1e-6, mask_ratio=0.0
    )
    model = transformers.ViTMAEForPreTraining(config).eval()
    randomise(model.vit)
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf" / "model.safetensors"


def test_transformers_own_vit_mae_gives_our_features(vit_mae: tuple[nn.Module, Path]) -> None:
    model, file = vit_mae
    from_file, _ = convert_weights(read_checkpoint(file), "fcmae")
    from_memory, report = convert_weights(model.state_dict(), "fcmae")
    assert_same(from_file, from_memory)
    assert not report.dropped and report.source == "transformers"
    encoder = vit().create_encoder().eval()
    load_weights(encoder, from_memory)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        # Without masking it still shuffles the patches; the identity keeps their order.
        noise = torch.arange(9.0).expand(2, 9)
        expected = model.vit(images, noise=noise).last_hidden_state  # pyright: ignore
        found = encoder.forward_tokens(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    written, _ = convert_weights(from_memory, "transformers")
    again = type(model).from_pretrained(  # pyright: ignore
        None, config=model.config, state_dict=written
    )
    assert_same(dict(again.state_dict()), dict(model.state_dict()))
    fresh = type(model)(model.config)  # pyright: ignore
    load_weights(fresh, from_memory)
    assert_same(dict(fresh.state_dict()), dict(model.state_dict()))


def test_transformers_own_vit_is_what_verification_runs() -> None:
    pytest.importorskip("transformers", reason="transformers: not installed")
    model, architecture = timm_vit(), vit(depth=2, dim=192, patch_size=16)
    ours, form = open_source(model.state_dict()).ours(), VIT.formats["transformers"]
    converted, _ = convert_weights(model.state_dict(), "transformers", architecture=architecture)
    found = VIT.compare(ours, converted, form, architecture)
    check_differences(found)
    assert found[0].comparison.endswith("against transformers") and found[1].stage == "logits"
    key = "vit.encoder.layer.1.attention.attention.key.weight"
    with pytest.raises(InputError, match=r"all visible, ours against transformers, (tokens|logits)"):
        check_differences(
            VIT.compare(ours, {**converted, key: converted[key].flip(0)}, form, architecture)[:2]
        )
    averaged = dataclasses.replace(architecture, pools_patches=True)
    with pytest.raises(InputError, match="expected a classifier of the class token for transformers"):
        averaged.require_fits("transformers")


def test_position_embeddings_of_another_grid_are_fitted_by_our_encoder() -> None:
    ours = random_weights(VIT, vit(), decoder=False)
    encoder = fcmae.create_backbone("vit_tiny_patch16", depths=(2,), dims=(12,), num_heads=3, stem_stride=8)
    load_weights(encoder, ours)
    assert encoder.state_dict()["pos_embed"].shape == (1, 1 + 28 * 28, 12)
    dense = timm_vit()
    with pytest.raises(InputError, match=r"is needed"):
        load_weights(dense, ours)
