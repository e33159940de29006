"""The ViT encoder against timm's, on visible patches only, at any size."""

import pytest
import timm
import torch
from torch import Tensor, nn

import fcmae
from fcmae.errors import InputError
from fcmae.models import PRESETS, ViTEncoder
from fcmae.models.position import sincos_positions
from sparse_ops import ActiveSites, SparseImage
from sparse_ops.testing import assert_no_leak

SMALL = {"depths": (2,), "dims": (16,), "num_heads": 2, "stem_stride": 8}


def small_encoder(**options) -> ViTEncoder:
    torch.manual_seed(0)
    encoder = fcmae.create_backbone("vit_tiny_patch16", **{**SMALL, **options})
    assert isinstance(encoder, ViTEncoder)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def some_visible(batch_size: int, grid: tuple[int, int]) -> Tensor:
    visible = torch.zeros(batch_size, *grid, dtype=torch.bool)
    for image in visible:
        image.view(-1)[torch.randperm(image.numel())[: image.numel() // 3]] = True
    return visible


NAMES = ("tiny_patch16", "small_patch16", "small_patch8", "base_patch16", "base_patch8", "large_patch16")


@pytest.mark.parametrize("name", [*NAMES, "large_patch14", "huge_patch14"])
def test_the_state_dict_is_timms(name: str) -> None:
    with torch.device("meta"):
        ours = fcmae.create_backbone(f"vit_{name}").state_dict()
        theirs = timm.create_model(f"vit_{name}_224", num_classes=0).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [
        (key, value.shape) for key, value in theirs.items()
    ]


def test_every_size_has_every_patch() -> None:
    names = [name for name in PRESETS if name.startswith("vit_")]
    assert len(names) == 25
    with torch.device("meta"):
        for name in names:
            encoder = fcmae.create_backbone(name)
            assert name.endswith(f"_patch{encoder.max_stride}")


@pytest.mark.parametrize("positions", ["fixed", "learnt"])
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
def test_timms_weights_give_timms_tokens(size: tuple[int, int], positions: str) -> None:
    """Their position embeddings are learnt: they are used, and interpolated for another grid."""
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, dynamic_img_size=True).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = fcmae.create_backbone("vit_tiny_patch16", depths=(2,), positions=positions).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.forward_features(images)
        assert torch.allclose(ours(images)[0].flatten(1, 2), expected[:, 1:], rtol=1e-9, atol=1e-11)
        assert torch.allclose(ours.embed(images), expected[:, 0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tile", [1, 2])
def test_visible_tokens_are_rows_in_the_order_of_the_sites(tile: int) -> None:
    encoder = small_encoder().double()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    whole = encoder(images)[0]
    assert whole.shape == (2, 4, 6, 16)
    ids = torch.stack([torch.arange(4 * 6 // tile**2)] * 2)
    sites = ActiveSites.from_visible_ids(ids, grid=(4 // tile, 6 // tile), tile=tile)
    rows = encoder(images, sites=sites)[0]
    assert isinstance(rows, SparseImage)
    assert torch.allclose(rows.densify(), whole, rtol=1e-9, atol=1e-12)
    assert torch.allclose(encoder.embed(images, sites=sites), encoder.embed(images), rtol=1e-9, atol=1e-12)


def test_only_visible_patches_are_computed_and_masked_pixels_change_nothing() -> None:
    encoder = small_encoder()
    lengths: list[int] = []
    encoder.blocks[0].register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    visible = some_visible(2, (4, 6))
    assert_no_leak(encoder, torch.randn(2, 3, 32, 48), visible)
    assert set(lengths) == {1 + 8}


def test_the_class_token_sees_visible_patches_only() -> None:
    encoder, visible = small_encoder(), some_visible(2, (4, 6))
    sites = ActiveSites.from_patches(visible, tile=1)
    images = torch.randn(2, 3, 32, 48)
    hidden = ~visible.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    one, other = (encoder.embed(x, sites=sites) for x in (images, images.masked_fill(hidden, 9.0)))
    assert torch.equal(one, other)
    seen = encoder.embed(images.masked_fill(~hidden, 9.0), sites=sites)
    assert not torch.allclose(one, seen, atol=1e-3)


def test_an_image_alone_is_the_same_as_in_a_batch() -> None:
    encoder, visible = small_encoder(), some_visible(3, (4, 4))
    images = torch.randn(3, 3, 32, 32)
    together = encoder(images, visible=visible)[0].densify()[1:2]
    assert torch.allclose(together, encoder(images[1:2], visible=visible[1:2])[0].densify(), atol=1e-5)


@pytest.mark.parametrize("in_chans", [1, 12])
@pytest.mark.parametrize("size", [(448, 448), (64, 160)])
def test_any_size_and_any_channels(in_chans: int, size: tuple[int, int]) -> None:
    encoder = small_encoder(in_chans=in_chans, stem_stride=16)
    grid = (size[0] // 16, size[1] // 16)
    images = torch.randn(2, in_chans, *size)
    features = encoder(images, visible=some_visible(2, grid))[0]
    assert features.features.shape == (2 * (grid[0] * grid[1] // 3), 16)
    assert encoder.pos_embed.shape == (1, 197, 16)
    before = encoder(images)[0]
    encoder.set_image_size(size)
    assert torch.equal(encoder.pos_embed, sincos_positions(grid, 16, prefix=1))
    assert torch.equal(encoder(images)[0], before)


def test_weights_of_images_of_another_size_load() -> None:
    source, target = small_encoder(), small_encoder()
    source.set_image_size((64, 32))
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.2)
    target.load_state_dict(source.state_dict())
    images = torch.randn(1, 3, 32, 48)
    assert target.pos_embed.shape[1] == 1 + 28 * 28
    assert torch.equal(source(images)[0], target(images)[0])


def test_learnt_positions_train_and_fixed_ones_do_not() -> None:
    for positions, trained in (("fixed", False), ("learnt", True)):
        encoder = small_encoder(positions=positions)
        assert ("pos_embed" in dict(encoder.named_parameters())) == trained
        assert "pos_embed" in encoder.state_dict()
    encoder.set_image_size((32, 48))
    encoder(torch.randn(1, 3, 32, 48), visible=some_visible(1, (4, 6)))[0].features.sum().backward()
    moved = encoder.pos_embed.grad[0].abs().sum(1) > 0
    assert int(moved.sum()) == 1 + 8


def test_drop_path_rises_to_the_last_block() -> None:
    encoder = small_encoder(depths=(3,), drop_path=0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fcmae.create_backbone("vit_base_patch61"), "Did you mean vit_base_patch16"),
        (lambda: small_encoder(num_heads=3), "divisor of the width 16 in 2 blocks, got 3"),
        (lambda: small_encoder(dims=(18,)), "divisible by 4 for sin-cos positions, got 18"),
        (lambda: small_encoder(drop_path=1.0), r"rate in \[0, 1\), got 1"),
        (lambda: small_encoder(positions="learned"), "Did you mean learnt"),
        (lambda: small_encoder(depths=(1, 1), dims=(8, 8)), "one entry a stage"),
        (lambda: small_encoder(grn_scope="image"), "options that vit_tiny_patch16 has, got grn_scope"),
        (lambda: small_encoder()(torch.randn(1, 3, 30, 32)), "divisible by the patch size 8, got 30 x 32"),
        (lambda: small_encoder()(torch.randn(1, 4, 32, 32)), "expected 3 channels, got 4"),
        (
            lambda: small_encoder()(
                torch.randn(2, 3, 16, 16), torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]]]).bool()
            ),
            "as many visible patches in every image, as attention needs, got 1 to 3",
        ),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
