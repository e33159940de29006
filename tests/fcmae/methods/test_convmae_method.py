"""ConvMAE against the original's computation; masks, ablations, learning, compile, and bad input."""

import pytest
import torch
from original_convmae import Original, positions
from overfitting import assert_overfits
from torch import Tensor, nn

import fcmae
from fcmae.errors import InputError
from fcmae.masking import complementary_visible_ids, patchify
from fcmae.methods import ConvMAE
from fcmae.report.reconstruction import pixels_of, reconstruct
from fcmae.report.samples import draw_visible
from sparse_ops.testing import assert_within_budget

SMALL = {
    "depths": (1, 2, 2),
    "dims": (8, 12, 16),
    "num_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 4,
}


def small_method(**options) -> ConvMAE:
    torch.manual_seed(0)
    method = fcmae.create_method(
        "convmae", **{"backbone": "convmae_small", "image_size": 64, **SMALL, **options}
    )
    assert isinstance(method, ConvMAE)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.2)
    return method


def official_name(name: str) -> str:
    return name.removeprefix("encoder.").removeprefix("decoder.")


def draw(method: ConvMAE, images: Tensor) -> Tensor:
    return method.draw_visible_ids(images, torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("execution", "dtype", "options"),
    [
        ("sparse", torch.float64, {}),
        ("masked_dense", torch.float64, {}),
        ("sparse", torch.float32, {}),
        ("sparse", torch.float64, {"image_size": (64, 96), "kernel_size": 7, "in_chans": 12}),
        ("sparse", torch.float64, {"image_size": (448, 448), "in_chans": 1}),
    ],
)
def test_loss_prediction_and_gradients_are_the_originals(
    execution: str, dtype: torch.dtype, options: dict
) -> None:
    """Under its names, at 224 px, which it is bound to, and as it would compute other images."""
    options = {"image_size": (224, 224), "in_chans": 3, **options}
    height, width = options["image_size"]
    grid = (height // 16, width // 16)
    images = torch.randn(2, options["in_chans"], height, width)
    results = []
    for arm, arm_dtype in (("original", torch.float64), ("original", dtype), (execution, dtype)):
        ours = arm != "original"
        method = small_method(**options, execution=arm if ours else "sparse").to(arm_dtype)
        ids = draw(method, images)
        parameters = dict(method.named_parameters())
        if ours:
            out = method(images.to(arm_dtype), visible_ids=ids)
            loss, pred = out.loss, out.pred
        else:
            state: dict[str, Tensor] = {official_name(name): p for name, p in parameters.items()}
            # Kept in float32, as the original's; those of another grid than the encoder's own are computed.
            kept = positions(16, grid).float().to(arm_dtype)
            state["decoder_pos_embed"] = kept
            state["pos_embed"] = kept if grid == (14, 14) else positions(16, grid).to(arm_dtype)
            hidden = torch.ones(2, grid[0] * grid[1], dtype=arm_dtype).scatter(1, ids, 0.0).view(2, *grid)
            loss, pred = Original(state, heads=(2, 4)).loss_and_pred(images.to(arm_dtype), hidden)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        results.append([loss.detach(), pred.detach(), *gradients])
    names = ["loss", "prediction", *parameters]
    for name, truth, reference, actual in zip(names, *results, strict=True):
        # Some hundred operations, each of which may round another way.
        assert_within_budget(actual, reference, truth, what=name, roundings=128)
        assert (actual.double() - truth).abs().max() <= 1e-5 * max(1.0, float(truth.abs().max())), name


def test_an_official_checkpoint_finds_its_place_by_name() -> None:
    with torch.device("meta"):
        method = fcmae.create_method("convmae", backbone="convmae_base", image_size=224)
    names = {official_name(name) for name in method.state_dict()}
    assert len(names) == len(method.state_dict())
    beside_the_encoder = names - set(method.encoder.state_dict())
    assert {name.split(".")[0] for name in beside_the_encoder} == {
        "stage1_output_decode", "stage2_output_decode", "mask_token", "decoder_embed", "decoder_pos_embed",
        "decoder_blocks", "decoder_norm", "decoder_pred",
    }  # fmt: skip
    # The authors count 115.04 M, fixed positions included.
    assert sum(tensor.numel() for tensor in method.state_dict().values()) == 115_041_408


def test_the_mask_is_drawn_in_patches_of_the_last_stage() -> None:
    method = small_method(image_size=(64, 96))
    images = torch.randn(3, 3, 64, 96)
    out = method(images, generator=torch.Generator().manual_seed(0))
    assert out.visible.shape == (3, 4, 6) and out.visible.flatten(1).sum(1).tolist() == [6, 6, 6]
    assert out.pred.shape == (3, 24, 768)
    assert not torch.equal(out.visible[0], out.visible[1])


def test_multi_scale_features_can_be_left_out() -> None:
    method = small_method(multi_scale=False)
    assert not any("output_decode" in name for name in method.state_dict())
    images = torch.randn(1, 3, 64, 64)
    out = method(images, visible_ids=draw(method, images))
    gradients = torch.autograd.grad(out.loss, list(method.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients[:4])


def test_without_masked_convolution_is_another_network() -> None:
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    losses = []
    for execution in ("sparse", "leaky_dense"):
        method = small_method(execution=execution).double()
        losses.append(float(method(images, visible_ids=draw(method, images)).loss.detach()))
    # Masked-dense is within 1e-12 of sparse here.
    assert abs(losses[0] - losses[1]) > 1e-6


@pytest.mark.parametrize("mask_stride", [4, 8])
def test_a_finer_random_mask_shows_every_token_in_part(mask_stride: int) -> None:
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    results = []
    for execution in ("sparse", "masked_dense"):
        method = small_method(mask_stride=mask_stride, execution=execution, norm_pix_loss=False).double()
        ids = draw(method, images)
        out = method(images, visible_ids=ids)
        results.append([out.loss, *torch.autograd.grad(out.loss, list(method.parameters()))])
    for sparse, dense in zip(*results, strict=True):
        assert torch.allclose(sparse, dense, rtol=1e-9, atol=1e-12)
    cells = (64 // mask_stride) * (96 // mask_stride)
    assert ids.shape == (2, cells // 4) and out.visible.shape == (2, 64 // mask_stride, 96 // mask_stride)
    tokens = out.visible.unfold(1, 16 // mask_stride, 16 // mask_stride)
    shown = tokens.unfold(2, 16 // mask_stride, 16 // mask_stride).flatten(3).any(3).float().mean()
    assert shown > (0.9 if mask_stride == 4 else 0.5)  # block-wise: 0.25
    # The loss is the mean over the hidden pixels.
    side = mask_stride
    hidden = ~out.visible.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None].expand(-1, 3, -1, -1)
    error = (out.pred - patchify(images, 16)).square()
    expected = error[patchify(hidden, 16)].mean()
    assert torch.allclose(out.loss, expected, rtol=1e-12)


def test_hidden_pixels_of_a_finer_mask_do_not_leak() -> None:
    method = small_method(mask_stride=4)
    images = torch.randn(2, 3, 64, 64)
    ids = draw(method, images)
    out = method(images, visible_ids=ids)
    hidden = ~out.visible.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    other = method(torch.where(hidden, 1e3, images), visible_ids=ids)
    assert torch.equal(out.pred, other.pred)


def test_complementary_masks_tile_the_image() -> None:
    method = small_method(complementary_masks=True)
    images = torch.randn(2, 3, 64, 64)
    ids = draw(method, images)
    assert ids.shape == (2, 4, 4)
    for image in ids:
        assert sorted(image.flatten().tolist()) == list(range(16))
        assert bool((image.diff(dim=1) > 0).all())
    assert not torch.equal(ids[0], ids[1])
    out = method(images, visible_ids=ids)
    assert out.visible.view(2, 4, 16).sum(1).eq(1).all()


def test_complementary_masks_are_that_many_masks_of_the_images() -> None:
    method = small_method(complementary_masks=True).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    ids = draw(method, images)
    together = method(images, visible_ids=ids)
    method.complementary_masks = False
    apart = [method(images, visible_ids=ids[:, mask]) for mask in range(4)]
    assert torch.allclose(together.loss, torch.stack([out.loss for out in apart]).mean(), rtol=1e-9)
    for mask, out in enumerate(apart):
        assert torch.allclose(together.pred.view(2, 4, 16, 768)[:, mask], out.pred, rtol=1e-9, atol=1e-12)


def test_masks_are_a_function_of_the_generator() -> None:
    def draws(seed: int) -> Tensor:
        return complementary_visible_ids(3, (4, 6), masks=3, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draws(0), draws(0)) and not torch.equal(draws(0), draws(1))


def test_a_forced_mask_may_be_ragged_and_patches_larger_than_the_stride() -> None:
    method = small_method(patch_size=32)
    visible = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]]]).bool()
    out = method(torch.randn(2, 3, 64, 64), visible=visible)
    assert out.pred.shape == (2, 4, 32 * 32 * 3)
    assert torch.equal(out.visible, visible) and bool(torch.isfinite(out.loss))


def test_twenty_steps_overfit_one_batch() -> None:
    torch.manual_seed(0)
    method = fcmae.create_method("convmae", backbone="convmae_small", image_size=64, **SMALL)
    assert_overfits(method, grid=(4, 4), patch_size=16)


def test_one_graph_serves_every_batch_size() -> None:
    method = small_method(depths=(1, 1, 1), decoder_depth=1)
    compiled = torch.compile(method, fullgraph=True, backend="eager")
    for batch_size in (2, 3):
        images = torch.randn(batch_size, 3, 64, 64)
        ids = method.draw_visible_ids(images)
        expected = method(images, visible_ids=ids)
        out = compiled(images, visible_ids=ids)
        assert torch.allclose(out.loss, expected.loss, rtol=1e-5)
        assert torch.allclose(out.pred, expected.pred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "divisible by the patch size 16"),
        ({"patch_size": 24}, "multiple of the encoder's largest stride 16"),
        ({"mask_stride": 6}, "mask_stride: expected a multiple of 4 that divides the patch size 16, got 6"),
        ({"mask_stride": 32}, "that divides the patch size 16, got 32"),
        ({"complementary_masks": True, "image_size": 48}, "expected 9 cells to fall into equal masks, got 2"),
        ({"complementary_masks": True, "mask_ratio": 0.6}, "Take a ratio of 1 - 1/n"),
        ({"decoder_heads": 3}, "divisor of the width 16"),
        ({"execution": "masked-dense"}, "Did you mean masked_dense"),
        ({"backbone": "convnextv2_atto", "num_heads": None, "depths": None, "dims": None}, "ConvMAEEncoder"),
    ],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fcmae.create_method("convmae", **{"backbone": "convmae_small", "image_size": 64, **SMALL, **options})


@pytest.mark.parametrize("options", [{}, {"complementary_masks": True}, {"mask_stride": 4}])
def test_reconstructions_keep_the_visible_pixels_and_paint_the_others(options: dict) -> None:
    method = small_method(image_size=(64, 96), **options)
    images = torch.randn(2, 3, 64, 96)
    visible = draw_visible(method, images, seed=0)
    seen = pixels_of(visible, method.cell_size).expand_as(images)
    painted = reconstruct(method, images, visible)
    assert torch.equal(painted[seen], images[seen])
    assert float((painted != images)[~seen].float().mean()) > 0.99
