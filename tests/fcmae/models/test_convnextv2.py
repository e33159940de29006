"""The encoder against timm's, its executions against each other, and what no mask may leak."""

import pytest
import timm
import torch
from torch import nn

import fcmae
from fcmae.errors import InputError
from fcmae.models import PRESETS, ConvNeXtV2Encoder
from sparse_ops import SparseImage, features_of
from sparse_ops.testing import assert_no_leak, assert_within_budget

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def small_encoder(**options) -> ConvNeXtV2Encoder:
    """A small encoder whose every parameter matters: GRN starts at zero and would hide mistakes."""
    torch.manual_seed(0)
    encoder = fcmae.create_backbone("convnextv2_atto", **{**SMALL, **options})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.1)
    return encoder


def some_visible(batch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    visible = torch.zeros(batch_size, *grid, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for image in visible:
        image.view(-1)[torch.randperm(image.numel(), generator=generator)[: image.numel() // 2]] = True
    return visible


@pytest.mark.parametrize("size", ["atto", "tiny"])
def test_all_visible_sparse_is_timms_own_network(size: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(f"convnextv2_{size}", num_classes=0).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.02 if parameter.ndim > 1 else 0.3)
    ours = fcmae.create_backbone(f"convnextv2_{size}").eval()
    fcmae.load_weights(ours, theirs.state_dict())
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = theirs.forward_features(images).permute(0, 2, 3, 1)
        sparse = ours(images, visible=torch.ones(2, 3, 4, dtype=torch.bool))[-1]
        dense = ours(images)[-1]
    assert isinstance(sparse, SparseImage)
    assert (sparse.densify() - expected).abs().max() < 1e-4
    assert (dense - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("convnextv2")])
def test_every_size_has_timms_state_dict(name: str) -> None:
    with torch.device("meta"):
        ours = fcmae.create_backbone(name).state_dict()
    names = {"convnextv2_small": "convnextv2_small"}
    with torch.device("meta"):
        theirs = timm.create_model(names.get(name, name), num_classes=0).state_dict()
    theirs = {key: value for key, value in theirs.items() if not key.startswith("head.")}
    assert list(ours) == list(theirs)
    assert all(ours[key].numel() == theirs[key].numel() for key in ours)


@pytest.mark.parametrize("patch_size", [32, 64])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_sparse_equals_masked_dense_in_outputs_and_gradients(patch_size: int, ragged: bool, scope) -> None:
    images = torch.randn(2, 3, 128, 192)
    visible = some_visible(2, (128 // patch_size, 192 // patch_size))
    if ragged:
        visible[0] |= visible[1]
    results = {}
    for dtype, execution in (
        (torch.float64, "masked_dense"),
        (torch.float32, "masked_dense"),
        (torch.float32, "sparse"),
    ):
        encoder = small_encoder(grn_scope=scope).to(dtype)
        features = encoder(images.to(dtype), visible=visible, execution=execution)
        rows = []
        for x in features:
            active = x.sites.active
            rows.append(x.densify()[active] if isinstance(x, SparseImage) else features_of(x)[active])
        loss = sum(r.square().mean() for r in rows)
        gradients = torch.autograd.grad(loss, list(encoder.parameters()))
        results[dtype, execution] = [*rows, *gradients]
    names = [f"stage {i}" for i in range(4)] + [name for name, _ in small_encoder().named_parameters()]
    truth, reference, actual = results.values()
    for name, a, r, t in zip(names, actual, reference, truth, strict=True):
        # Some thirty operations, each of which may round another way.
        assert_within_budget(a, r, t, what=name, roundings=32)


@pytest.mark.parametrize("execution", ["sparse", "masked_dense"])
def test_masked_pixels_change_nothing(execution) -> None:
    encoder = small_encoder()

    def run(images, visible):
        return encoder(images, visible=visible, execution=execution)

    assert_no_leak(run, torch.randn(2, 3, 128, 96), some_visible(2, (4, 3)))


def test_the_leak_check_finds_the_leaky_execution() -> None:
    encoder = small_encoder()

    def run(images, visible):
        return encoder(images, visible=visible, execution="leaky_dense")

    images, visible = torch.randn(2, 3, 128, 96), some_visible(2, (4, 3))
    # Masked once at the input: pixels do not leak, but masked sites take part, so the features differ.
    leaky, sparse = run(images, visible)[-1], encoder(images, visible=visible)[-1].densify()
    assert not torch.allclose(leaky[visible], sparse[visible], atol=1e-3)
    with pytest.raises(AssertionError, match="masked pixels"):
        assert_no_leak(lambda images, visible: encoder(images), images, visible)


def test_an_image_alone_is_the_same_as_in_a_batch() -> None:
    encoder = small_encoder()
    images, visible = torch.randn(3, 3, 128, 128), some_visible(3, (4, 4))
    together = encoder(images, visible=visible)[-1].densify()
    alone = encoder(images[1:2], visible=visible[1:2])[-1].densify()
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("in_chans", [1, 12])
def test_small_images_and_any_channels(stem_stride: int, in_chans: int) -> None:
    encoder = small_encoder(stem_stride=stem_stride, in_chans=in_chans)
    side = 4 * encoder.max_stride
    features = encoder(torch.randn(2, in_chans, side, side), visible=some_visible(2, (4, 4)))
    assert [f.features.shape[1] for f in features] == [8, 16, 24, 32]
    assert encoder.strides == tuple(stem_stride * 2**i for i in range(4))


def test_the_hidden_width_can_be_chosen() -> None:
    encoder = small_encoder(mlp_ratio=2)
    assert encoder.stages[0].blocks[0].mlp.fc1.weight.shape == (16, 8)
    assert len(encoder(torch.randn(1, 3, 64, 64), visible=some_visible(1, (2, 2)))) == 4


def test_drop_path_drops_whole_images() -> None:
    encoder = small_encoder(drop_path=0.5, depths=(1, 2), dims=(8, 16)).train()
    block = encoder.stages[1].blocks[1]
    assert block.drop_path.rate == 0.5
    x = encoder.stages[0](encoder.stem(torch.randn(64, 3, 8, 8), None, "sparse"))
    x = encoder.stages[1].blocks[0](encoder.stages[1].downsample(x))
    changed = (block(x) - x).flatten(1).abs().amax(1) > 0
    assert 10 < int(changed.sum()) < 54
    assert torch.equal(block.eval()(x), block.eval()(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fcmae.create_backbone("convnextv2_tinny"), "Did you mean convnextv2_tiny"),
        (lambda: small_encoder()(torch.randn(1, 3, 100, 96)), "divisible by the patch size 32, got 100 x 96"),
        (lambda: small_encoder()(torch.randn(1, 4, 96, 96)), "expected 3 channels, got 4"),
        (
            lambda: small_encoder()(torch.randn(1, 3, 96, 96), torch.ones(1, 6, 6, dtype=torch.bool)),
            "multiple of 32",
        ),
        (lambda: fcmae.create_backbone("convnextv2_atto", depths=(1, 1)), "one entry a stage"),
        (lambda: small_encoder(kernel_size=4), "an odd kernel"),
        (lambda: small_encoder()(torch.randn(3, 96, 96)), r"expected \[B, 3, H, W\]"),
        (lambda: small_encoder()(torch.randn(2, 3, 96, 96), torch.ones(3, 3) > 0), r"bool \[2, Gh, Gw\]"),
        (lambda: small_encoder()(torch.randn(2, 3, 96, 96), torch.ones(1, 3, 3) > 0), r"bool \[2, Gh, Gw\]"),
        (lambda: small_encoder()(torch.randn(1, 3, 96, 96), execution="Sparse"), "Did you mean sparse"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
