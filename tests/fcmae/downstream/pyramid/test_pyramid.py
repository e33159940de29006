"""Pyramids: what their maps are, of images of any size, alone and in a batch."""

import pytest
import torch
from downstream_encoders import SIZES, encoder_weights, small_pyramid
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.convert import open_source, to_timm
from fcmae.downstream import create_pyramid
from fcmae.errors import InputError
from fcmae.models import ConvMAEEncoder, ViTEncoder, create_backbone
from fcmae.models.transformer import transformer_blocks
from fcmae.training.engine.sharding import checkpoint_activations

WIDTHS = {
    "convnextv2_atto": (8, 12, 16, 20),
    "convmae_small": (8, 12, 16, 16),
    "vit_tiny_patch16": (4, 8, 16, 16),
}


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal in float64 but for the order of sums."""
    assert found.dtype == expected.dtype == torch.float64
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(64, 96), (70, 33), (1, 130)])
def test_strides_and_channels(backbone: str, size: tuple[int, int]) -> None:
    pyramid = small_pyramid(backbone)
    maps = pyramid(torch.randn(2, 3, *size))
    padded = [32 * -(-side // 32) for side in size]
    assert pyramid.channels == dict(zip(("4", "8", "16", "32"), WIDTHS[backbone], strict=True))
    for stride, width in pyramid.channels.items():
        assert list(maps[stride].shape) == [2, width, *(side // int(stride) for side in padded)]
    assert list(maps) == ["4", "8", "16", "32"]


def test_convnextv2_maps_are_the_stages_of_timm_behind_norms() -> None:
    weights, images = encoder_weights("convnextv2_atto"), torch.randn(2, 3, 64, 96).double()
    pyramid = small_pyramid("convnextv2_atto", weights=weights).double()
    dense = open_source(weights).architecture().create_timm(num_classes=0)
    dense.load_state_dict(to_timm(weights)[0], strict=False)
    stages = dense.double().eval().forward_intermediates(images, intermediates_only=True)
    for norm, stage, found in zip(pyramid.norms, stages, pyramid(images).values(), strict=True):
        assert close(found, norm(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_convnextv2_keeps_what_stands_in_grns_place() -> None:
    encoder = create_backbone("convnextv2_atto", gating="cbam", **SIZES["convnextv2_atto"])
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    pyramid = small_pyramid("convnextv2_atto", weights=weights, drop_path=0.5)
    loaded = pyramid.encoder.state_dict()
    assert all(torch.equal(tensor, weights[f"encoder.{name}"]) for name, tensor in loaded.items())
    assert pyramid.encoder.stages[3].blocks[0].drop_path.rate == 0.5
    again = create_pyramid("convnextv2_atto", description=pyramid.description)
    assert again.state_dict().keys() == pyramid.state_dict().keys()


def test_convmae_maps_are_its_stages_with_all_attention_global() -> None:
    weights, images = encoder_weights("convmae_small"), torch.randn(2, 3, 224, 224).double()
    pyramid = small_pyramid("convmae_small", weights=weights, window_size=0).double()
    encoder = create_backbone("convmae_small", **SIZES["convmae_small"])
    assert isinstance(encoder, ConvMAEEncoder)
    encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in weights.items()})
    maps = pyramid(images)
    for norm, stage, found in zip(
        pyramid.norms, encoder.double().eval()(images), maps.values(), strict=False
    ):
        assert close(found, norm(stage).permute(0, 3, 1, 2))
    assert torch.equal(maps["32"], F.max_pool2d(maps["16"], 2))


def test_vit_maps_are_made_of_its_last_tokens() -> None:
    weights, images = encoder_weights("vit_tiny_patch16"), torch.randn(2, 3, 224, 224).double()
    pyramid = small_pyramid("vit_tiny_patch16", weights=weights).double()
    encoder = create_backbone("vit_tiny_patch16", **SIZES["vit_tiny_patch16"])
    assert isinstance(encoder, ViTEncoder)
    encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in weights.items()})
    tokens = encoder.double().eval().patch_embed(images) + encoder.pos_embed[:, 1:]
    tokens = pyramid.norm(encoder.blocks(tokens)).transpose(1, 2).unflatten(2, (14, 14))
    maps = pyramid(images)
    assert close(maps["16"], tokens)
    assert close(maps["4"], pyramid.up4(tokens)) and close(maps["8"], pyramid.up8(tokens))
    assert close(maps["32"], F.max_pool2d(tokens, 2))


@torch.no_grad()
def test_maxima_are_of_what_is_image(transformer: str) -> None:
    """Of 5 x 7 tokens: the last row and column of the coarsest map have two of a square, or one."""
    maps = small_pyramid(transformer)(torch.randn(1, 3, 70, 100))
    expected = F.max_pool2d(maps["16"][:, :, :5, :7], 2, ceil_mode=True)
    assert torch.equal(maps["32"], expected) and (expected[..., 2, 3] < 0).any()


@pytest.mark.parametrize("positions", ["interpolated", "both"])
def test_padding_changes_nothing(backbone: str, positions: str) -> None:
    options = {"positions": positions, "window_size": 3} if backbone != "convnextv2_atto" else {}
    pyramid = small_pyramid(backbone, **options).double().requires_grad_(False)
    image, other = torch.randn(3, 70, 100).double(), torch.randn(3, 130, 161).double()
    alone = pyramid(image[None])
    batch = torch.full((2, 3, 192, 224), 1e3).double()
    batch[0, :, :70, :100], batch[1, :, :130, :161] = image, other
    together = pyramid(batch, sizes=[(70, 100), (130, 161)])
    for stride in alone:
        height, width = -(-70 // int(stride)), -(-100 // int(stride))
        expected, found = alone[stride][0], together[stride][0]
        assert close(found[:, :height, :width], expected[:, :height, :width])
        assert float(expected.abs().max()) > 0.1
        assert not found[:, height:].any() and not found[:, :, width:].any()
        assert not expected[:, height:].any() and not expected[:, :, width:].any()


def test_padding_is_not_of_the_image(backbone: str) -> None:
    """Without its size an image is another one: the check above could fail."""
    pyramid = small_pyramid(backbone).requires_grad_(False)
    image = torch.randn(1, 3, 70, 100)
    padded = F.pad(image, (0, 124, 0, 122))
    found, alone = pyramid(padded)["16"], pyramid(image)["16"]
    assert not torch.allclose(found[..., :4, :6], alone[..., :4, :6], atol=1e-3)


def test_trains_every_parameter_on_padded_batches(backbone: str) -> None:
    options = {} if backbone == "convnextv2_atto" else {"positions": "both", "window_size": 3}
    pyramid = small_pyramid(backbone, drop_path=0.1, **options).train()
    maps = pyramid(torch.randn(2, 3, 96, 160), sizes=[(96, 100), (20, 160)])
    sum((level * torch.randn_like(level)).sum() for level in maps.values()).backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_weights_of_a_classifier(transformer: str) -> None:
    """One that averages patches: its norm is the head's, and the pyramid has its own anyway."""
    weights = encoder_weights(transformer)
    dim = SIZES[transformer]["dims"][-1]
    tuned = {name: value for name, value in weights.items() if not name.startswith("encoder.norm")}
    head = {"head.norm": nn.LayerNorm(dim), "head.fc": nn.Linear(dim, 5)}
    tuned |= {
        f"{part}.{name}": value
        for part, module in head.items()
        for name, value in module.state_dict().items()
    }
    first, second = (small_pyramid(transformer, weights=state) for state in (weights, tuned))
    for name, value in second.encoder.state_dict().items():
        assert torch.equal(value, first.encoder.state_dict()[name]), name


def test_description_builds_it_again(backbone: str) -> None:
    pyramid = small_pyramid(backbone)
    again = create_pyramid(backbone, description=pyramid.description).eval()
    again.load_state_dict(pyramid.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert all(
        torch.equal(a, b) for a, b in zip(pyramid(images).values(), again(images).values(), strict=True)
    )


def test_random_weights_take_the_preset() -> None:
    pyramid = create_pyramid("convnextv2_atto")
    assert pyramid.depths == (2, 2, 6, 2) and pyramid.channels["32"] == 320


def test_patches_of_14_pixels_become_16() -> None:
    pyramid = create_pyramid("vit_tiny_patch14", image_size=64)
    assert pyramid.encoder.patch_embed.proj.kernel_size == (16, 16)
    assert pyramid(torch.randn(1, 3, 64, 64))["16"].shape[2:] == (4, 4)


def test_positions_of_another_grid_are_stretched(transformer: str) -> None:
    pyramid = small_pyramid(transformer, image_size=(112, 224))
    expected = encoder_weights(transformer)["encoder.pos_embed"][:, -196:].unflatten(1, (14, 14))
    expected = F.interpolate(expected.permute(0, 3, 1, 2), (7, 14), mode="bicubic", antialias=True)
    assert torch.allclose(pyramid.pos_embed, expected.flatten(2).transpose(1, 2))


def test_layers_of_parameters(backbone: str) -> None:
    pyramid = small_pyramid(backbone, **({} if backbone == "convnextv2_atto" else {"positions": "both"}))
    scale = pyramid.layer_scale(0.5)
    layers = sum(pyramid.depths) + 1
    found = {name: scale(name) for name, _ in pyramid.named_parameters()}
    first, last, own = {
        "convnextv2_atto": ("encoder.stem.0.weight", "encoder.stages.3.blocks.0.norm.bias", "norms.0.weight"),
        "convmae_small": ("encoder.patch_embed1.proj.weight", "encoder.blocks3.4.norm1.bias", "norms.0.bias"),
        "vit_tiny_patch16": ("encoder.patch_embed.proj.bias", "encoder.blocks.4.norm1.bias", "up4.0.bias"),
    }[backbone]
    bottom = 0 if backbone == "vit_tiny_patch16" else 1
    assert found[first] == 0.5 ** (layers - bottom) and found[last] == 0.5 and found[own] == 1.0
    if backbone != "convnextv2_atto":
        assert found["pos_embed"] == found[first] and found["relative.4.rows"] == 0.5
        assert found["relative.0.columns"] == 0.5**5
        assert {"pos_embed", "relative.4.rows"} <= pyramid.no_weight_decay()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": -1}, "window_size: expected 0 or more tokens, got -1"),
        ({"global_blocks": (0, 5)}, "global_blocks: expected blocks from 0 to 4"),
        ({"positions": "absolut"}, "positions: expected a kind of position embedding"),
        ({"in_chans": 4}, "in_chans: expected that of the weights, 3, got 4"),
    ],
)
def test_refuses_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_pyramid("convmae_small", **options)


@pytest.mark.parametrize("sizes", [[(64, 64)], [(64, 65), (64, 64)], [(0, 64), (64, 64)]])
def test_refuses_sizes(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="sizes: expected 2 of at most 64 x 64 pixels"):
        small_pyramid("convnextv2_atto")(torch.randn(2, 3, 64, 64), sizes=sizes)


def test_refuses_other_channels_and_stems() -> None:
    with pytest.raises(InputError, match="expected \\[B, 3, H, W\\], got \\[2, 4, 64, 64\\]"):
        small_pyramid("convnextv2_atto")(torch.randn(2, 4, 64, 64))
    small = create_backbone("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), stem_stride=2)
    weights = {f"encoder.{name}": value for name, value in small.state_dict().items()}
    with pytest.raises(InputError, match="expected an encoder with strides 4 to 32, got \\(2, 4, 8, 16\\)"):
        create_pyramid("convnextv2_atto", weights=weights)


def test_blocks_are_timms() -> None:
    """`attend` knows nothing of layer scale."""
    block = transformer_blocks(1, 8, num_heads=2)[0]
    assert isinstance(block.ls1, nn.Identity) and isinstance(block.ls2, nn.Identity)


def test_checkpointed_blocks_keep_little_and_run_twice(transformer: str) -> None:
    def run(*, checkpointed: bool) -> tuple[int, int, list[Tensor]]:
        """Numbers kept for the backward pass, calls of the last attention, and gradients."""
        torch.manual_seed(0)
        pyramid = small_pyramid(transformer, positions="both", window_size=2)
        if checkpointed:
            checkpoint_activations(pyramid)
        calls: list[None] = []
        last = pyramid.get_submodule("encoder.blocks.4" if transformer[0] == "v" else "encoder.blocks3.4")
        last.get_submodule("attn.proj").register_forward_hook(lambda *_: calls.append(None))
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            maps = pyramid(torch.randn(2, 3, 128, 128), [(128, 128), (70, 90)])
        torch.stack([values.square().mean() for values in maps.values()]).sum().backward()
        return sum(kept), len(calls), [value.grad for value in pyramid.parameters() if value.grad is not None]

    plain, checkpointed = run(checkpointed=False), run(checkpointed=True)
    assert (plain[1], checkpointed[1]) == (1, 2)
    assert checkpointed[0] < 0.6 * plain[0]
    assert all(map(torch.equal, plain[2], checkpointed[2])) and len(plain[2]) == len(checkpointed[2])
