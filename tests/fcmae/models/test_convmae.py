"""ConvMAE's encoder: names and sizes, executions against each other, what no mask may leak, any image."""

import pytest
import torch
from torch import nn

import fcmae
from fcmae.errors import InputError
from fcmae.models import ConvMAEEncoder
from fcmae.models.position import sincos_positions
from sparse_ops import SparseImage, features_of
from sparse_ops.testing import assert_no_leak, assert_within_budget

SMALL = {"depths": (1, 2, 2), "dims": (8, 12, 16), "num_heads": 2, "mlp_ratio": 2}


def small_encoder(**options) -> ConvMAEEncoder:
    torch.manual_seed(0)
    encoder = fcmae.create_backbone("convmae_small", **{**SMALL, **options})
    assert isinstance(encoder, ConvMAEEncoder)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def some_visible(batch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    noise = torch.rand(batch_size, grid[0] * grid[1], generator=torch.Generator().manual_seed(1))
    return (noise.argsort(1).argsort(1) < grid[0] * grid[1] // 2).view(batch_size, *grid)


def rows_of(features: list) -> list[torch.Tensor]:
    rows = []
    for x in features:
        active = x.sites.active
        rows.append(x.densify()[active] if isinstance(x, SparseImage) else features_of(x)[active])
    return rows


@pytest.mark.parametrize(
    ("size", "parameters"),
    # Of base: the authors' 115.04 M with the decoder, less it; of the others there is no code of theirs.
    [("small", 21_867_264), ("base", 84_455_296), ("large", 321_751_680), ("huge", 679_206_912)],
)
def test_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = fcmae.create_backbone(f"convmae_{size}")
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_names_and_shapes_are_the_originals() -> None:
    with torch.device("meta"):
        state = fcmae.create_backbone("convmae_base").state_dict()
    expected: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 196, 768),
        "norm.weight": (768,),
        "norm.bias": (768,),
    }
    linear: dict[str, tuple[int, ...]] = {"patch_embed4": (768, 768)}
    inner = (3, 256, 384)
    for stage, (dim, side) in enumerate(zip((256, 384, 768), (4, 2, 2), strict=True), 1):
        linear[f"patch_embed{stage}.proj"] = (dim, inner[stage - 1], side, side)
        linear[f"patch_embed{stage}.norm"] = (dim,)
        for block in range((2, 2, 11)[stage - 1]):
            name = f"blocks{stage}.{block}"
            linear |= {f"{name}.norm1": (dim,), f"{name}.norm2": (dim,)}
            one = (1, 1) if stage < 3 else ()
            linear |= {f"{name}.mlp.fc1": (4 * dim, dim, *one), f"{name}.mlp.fc2": (dim, 4 * dim, *one)}
            if stage < 3:
                linear |= {f"{name}.conv1": (dim, dim, 1, 1), f"{name}.conv2": (dim, dim, 1, 1)}
                linear[f"{name}.attn"] = (dim, 1, 5, 5)
            else:
                linear |= {f"{name}.attn.qkv": (3 * dim, dim), f"{name}.attn.proj": (dim, dim)}
    for name, shape in linear.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_norms_have_the_originals_eps() -> None:
    found: dict[float, set[str]] = {}
    for name, module in small_encoder().named_modules():
        if isinstance(module, nn.LayerNorm):
            found.setdefault(module.eps, set()).add(name.split(".")[0])
    assert found == {
        1e-5: {"patch_embed1", "patch_embed2", "patch_embed3", "blocks1", "blocks2"},
        1e-6: {"blocks3", "norm"},
    }


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
@pytest.mark.parametrize("ragged", [False, True])
def test_sparse_equals_masked_dense_in_outputs_and_gradients(kernel_size: int, ragged: bool) -> None:
    patch_size = 32 if kernel_size == 7 else 16
    images = torch.randn(2, 3, 64, 96)
    visible = some_visible(2, (64 // patch_size, 96 // patch_size))
    if ragged:
        visible[0] |= visible[1]
    results = []
    for dtype, execution in (
        (torch.float64, "masked_dense"),
        (torch.float32, "masked_dense"),
        (torch.float32, "sparse"),
    ):
        encoder = small_encoder(kernel_size=kernel_size).to(dtype)
        rows = rows_of(encoder(images.to(dtype), visible=visible, execution=execution))
        parameters = dict(encoder.named_parameters())
        del parameters["norm.weight"], parameters["norm.bias"]  # the caller's
        loss = torch.stack([r.square().mean() for r in rows]).sum()
        results.append([*rows, *torch.autograd.grad(loss, list(parameters.values()))])
    names = [*(f"stage {i}" for i in range(3)), *parameters]
    truth, reference, actual = results
    for name, a, r, t in zip(names, actual, reference, truth, strict=True):
        # Some thirty operations, each of which may round another way.
        assert_within_budget(a, r, t, what=name, roundings=32)


@pytest.mark.parametrize("execution", ["sparse", "masked_dense"])
@pytest.mark.parametrize("patch_size", [16, 32])
def test_masked_pixels_change_nothing(execution: str, patch_size: int) -> None:
    encoder = small_encoder()

    def run(images, visible):
        return encoder(images, visible=visible, execution=execution)

    visible = some_visible(2, (128 // patch_size, 96 // patch_size))
    assert_no_leak(run, torch.randn(2, 3, 128, 96), visible)


def test_without_masked_convolution_pixels_leak() -> None:
    encoder = small_encoder()

    def run(images, visible):  # the tokens alone: the convolution stages are whole images here
        return encoder(images, visible=visible, execution="leaky_dense")[-1:]

    with pytest.raises(AssertionError, match="masked pixels change result 0"):
        assert_no_leak(run, torch.randn(2, 3, 64, 64), some_visible(2, (4, 4)))


def test_all_visible_is_the_whole_image() -> None:
    encoder = small_encoder().double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    everything = encoder(images, visible=torch.ones(2, 4, 6, dtype=torch.bool))
    for sparse, dense in zip(everything, encoder(images), strict=True):
        assert torch.allclose(sparse.densify(), dense, rtol=1e-9, atol=1e-12)


def test_every_stage_keeps_whole_tiles_of_the_visible_patches() -> None:
    visible = some_visible(2, (4, 6))
    features = small_encoder()(torch.randn(2, 3, 64, 96), visible=visible)
    for x, side in zip(features, (4, 2, 1), strict=True):
        tiles = visible.repeat_interleave(side, 1).repeat_interleave(side, 2)
        assert torch.equal(x.sites.active, tiles) and x.sites.tile == side
        assert x.features.shape[0] == 2 * 12 * side * side


def test_an_image_alone_is_the_same_as_in_a_ragged_batch() -> None:
    encoder = small_encoder().double()
    images, visible = torch.randn(3, 3, 64, 64, dtype=torch.float64), some_visible(3, (4, 4))
    visible[0, 0], visible[2] = True, False
    together = encoder(images, visible=visible)
    for image in (0, 1):
        alone = encoder(images[image : image + 1], visible=visible[image : image + 1])
        for a, b in zip(alone, together, strict=True):
            assert torch.allclose(a.densify()[0], b.densify()[image], rtol=1e-9, atol=1e-12)
    # The third image has no token at all, and nothing that is not a number goes back from it.
    loss = torch.stack([x.features.square().sum() for x in together]).sum()
    gradients = torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("in_chans", [1, 12])
@pytest.mark.parametrize("image_size", [(448, 448), (32, 80)])
def test_any_image(in_chans: int, image_size: tuple[int, int]) -> None:
    grid = (image_size[0] // 16, image_size[1] // 16)
    encoder = small_encoder(in_chans=in_chans)
    images = torch.randn(1, in_chans, *image_size)
    first, second, tokens = encoder(images, visible=some_visible(1, grid))
    assert [x.features.shape[1] for x in (first, second, tokens)] == [8, 12, 16]
    assert (tokens.sites.height, tokens.sites.width) == grid
    whole = encoder(images)
    assert whole[-1].shape == (1, *grid, 16)


def test_an_embedding_is_the_normed_mean_of_the_visible_tokens() -> None:
    encoder = small_encoder().double()
    images, visible = torch.randn(2, 3, 64, 64, dtype=torch.float64), some_visible(2, (4, 4))
    visible[0, 0] = True
    sites = encoder.first_sites(images, visible, None)
    tokens = encoder(images, sites=sites)[-1].densify()
    means = torch.stack([tokens[image][visible[image]].mean(0) for image in (0, 1)])
    assert torch.allclose(encoder.embed(images, sites=sites), encoder.norm(means), rtol=1e-9, atol=1e-12)
    whole = encoder.norm(encoder(images)[-1].flatten(1, 2).mean(1))
    assert torch.allclose(encoder.embed(images), whole, rtol=1e-9, atol=1e-12)


def test_positions_are_added_where_the_tokens_are() -> None:
    """Without blocks and projections the tokens are the positions."""
    encoder = small_encoder(depths=(0, 0, 0))
    for parameter in encoder.patch_embed4.parameters():
        nn.init.zeros_(parameter)
    visible = some_visible(2, (2, 5))
    tokens = encoder(torch.randn(2, 3, 32, 80), visible=visible)[-1].densify()
    expected = sincos_positions((2, 5), 16).view(1, 2, 5, 16) * visible.unsqueeze(-1)
    assert torch.equal(tokens, expected)


def test_learnt_positions_of_a_finetuned_checkpoint_are_used() -> None:
    encoder = small_encoder()
    state = encoder.state_dict()
    learnt = state["pos_embed"] + torch.randn(1, 196, 16)
    other = small_encoder()
    other.load_state_dict({**state, "pos_embed": learnt})
    assert torch.equal(other.pos_embed, learnt)
    images = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(other(images)[-1], encoder(images)[-1], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1)}, "one entry a stage"),
        ({"kernel_size": 4}, "expected an odd number, got 4"),
        ({"mlp_ratio": (4, 4)}, "one number or one a stage"),
        ({"num_heads": 3}, "divisor of the width 16"),
        ({"drop_path": 1.0}, r"rate in \[0, 1\), got 1"),
        ({"grn_scope": "image"}, "convmae_small has, got grn_scope"),
    ],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fcmae.create_backbone("convmae_small", **{**SMALL, **options})
