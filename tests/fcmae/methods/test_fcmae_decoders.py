"""FCMAE's decoders: executions agree, they learn, and they are carried by conversion."""

import dataclasses

import pytest
import torch
from overfitting import assert_overfits
from torch import nn

import fcmae
from fcmae.config import DECODERS, DataConfig, FCMAEConfig, PretrainConfig
from fcmae.convert import convert_weights, load_weights, open_source
from fcmae.errors import InputError
from fcmae.methods import FCMAE, from_config

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "decoder_dim": 32}


def small_method(**options) -> FCMAE:
    torch.manual_seed(0)
    method = fcmae.create_method(
        "fcmae", **{"backbone": "convnextv2_atto", "image_size": (128, 192), **SMALL, **options}
    )
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.1)
    return method


@pytest.mark.parametrize("patch_size", [32, 64])
@pytest.mark.parametrize("decoder", DECODERS)
def test_sparse_is_masked_dense(decoder: str, patch_size: int) -> None:
    images = torch.randn(2, 3, 128, 192, dtype=torch.float64)
    ragged = torch.zeros(2, 128 // patch_size, 192 // patch_size, dtype=torch.bool)
    ragged[0, 0, 1:] = True  # the second image shows nothing
    results = []
    for execution in ("sparse", "masked_dense"):
        method = small_method(decoder=decoder, decoder_depth=2, patch_size=patch_size, execution=execution)
        out = method.double()(images, visible=ragged)
        results.append([out.pred, *torch.autograd.grad(out.loss, list(method.parameters()))])
    for sparse, masked in zip(*results, strict=True):
        torch.testing.assert_close(sparse, masked, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decoder", ["transformer", "unet"])
def test_masked_pixels_change_no_prediction(decoder: str) -> None:
    method = small_method(decoder=decoder).double()
    images = torch.randn(1, 3, 128, 192, dtype=torch.float64)
    visible = torch.zeros(1, 4, 6, dtype=torch.bool)
    visible[0, ::2, ::3] = True
    hidden = ~visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    noise = torch.randn_like(images) * hidden
    assert torch.equal(method(images, visible=visible).pred, method(images + noise, visible=visible).pred)


@pytest.mark.parametrize("decoder", ["transformer", "unet"])
def test_images_of_other_sizes_go_through(decoder: str) -> None:
    assert small_method(decoder=decoder)(torch.randn(1, 3, 192, 96)).pred.shape == (1, 18, 3072)


def test_a_unets_step_compiles_as_one_graph() -> None:
    method = small_method(decoder="unet")
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 128, 192)
    ids = method.draw_visible_ids(images)
    expected = method(images, visible_ids=ids).loss
    torch.testing.assert_close(compiled(images, visible_ids=ids).loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("decoder", ["transformer", "unet"])
def test_it_learns_a_batch(decoder: str) -> None:
    torch.manual_seed(0)
    method = fcmae.create_method("fcmae", backbone="convnextv2_atto", image_size=64, decoder=decoder, **SMALL)
    assert_overfits(method, grid=(2, 2), patch_size=32, steps=60, lr=3e-3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_conversion_carries_the_decoder(decoder: str) -> None:
    config = PretrainConfig(
        data=DataConfig(source="digits", image_size=64),
        model=FCMAEConfig(backbone="convnextv2_atto", decoder=decoder, decoder_depth=2, **SMALL),
    )
    method = from_config(config.model, config.data)
    weights = method.state_dict()
    saved = {"format": "fcmae-1", "kind": "pretrain", "config": dataclasses.asdict(config), "model": weights}
    architecture = open_source(saved).architecture()
    converted, _ = convert_weights(weights, "fcmae", architecture=architecture)
    assert converted.keys() == weights.keys()
    other = from_config(config.model, config.data)
    load_weights(other, converted)
    assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())
    lost = {name: value for name, value in weights.items() if "pred.bias" not in name}
    with pytest.raises(InputError, match=r"missing decoder\.(decoder_)?pred\.bias"):
        convert_weights(lost, "fcmae", architecture=architecture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "u-net"}, "Did you mean unet"),
        ({"decoder": "unet", "decoder_dim": 20}, "multiple of 8 for a unet"),
        ({"decoder": "transformer", "init": "original"}, "expected 002 for a transformer decoder"),
        ({"decoder": "transformer", "decoder_dim": 100}, "divisor of the width 100"),
    ],
)
def test_what_does_not_fit_is_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_method(**options)
