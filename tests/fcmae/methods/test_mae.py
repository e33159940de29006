"""MAE against its definition, its masks, learning, compile, and bad input."""

import pytest
import torch
from mae_definition import mae
from overfitting import assert_overfits
from torch import Tensor, nn

import fcmae
from fcmae.errors import InputError
from fcmae.masking import patchify
from fcmae.methods import MAE
from fcmae.methods.losses import reconstruction_loss
from fcmae.models.position import sincos_positions
from fcmae.report.reconstruction import pixels_of, reconstruct

SMALL = {"depths": (2,), "dims": (24,), "num_heads": 3, "stem_stride": 8}
DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 4}


def small_method(**options) -> MAE:
    torch.manual_seed(0)
    method = fcmae.create_method(
        "mae", **{"backbone": "vit_tiny_patch16", "image_size": (32, 48), **SMALL, **DECODER, **options}
    )
    assert isinstance(method, MAE)
    return method


def shaken(method: MAE) -> MAE:
    """Every parameter random: at the start biases are 0 and scales 1, which would hide mistakes."""
    for parameter in method.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return method


def in_float64(method: MAE) -> MAE:
    """`shaken`, with positions that were not rounded to float32 on their way."""
    shaken(method).double()
    for module, name in ((method.encoder, "pos_embed"), (method.decoder, "decoder_pos_embed")):
        dim = getattr(module, name).shape[2]
        setattr(module, name, sincos_positions(module.grid, dim, prefix=1, dtype=torch.float64))
    return method


def official_names(method: MAE) -> dict[str, str]:
    """Official name -> ours: a part's name in front, nothing else."""
    return {name.partition(".")[2]: name for name in method.state_dict()}


def test_names_are_the_official_ones_behind_their_part() -> None:
    names = official_names(small_method())
    assert len(names) == len(small_method().state_dict())
    decoding = {name for name, ours in names.items() if ours.startswith("decoder.")}
    assert decoding == {name for name in names if name.startswith("decoder_") or name == "mask_token"}
    parts = {name.split(".")[0] for name in names}
    assert parts - decoding == {"cls_token", "pos_embed", "patch_embed", "blocks", "norm"} | {
        f"decoder_{part}" for part in ("embed", "blocks", "norm", "pred")
    }


@pytest.mark.parametrize(
    ("backbone", "trained", "fixed"),
    [
        ("vit_base_patch16", 111_655_680, 252_160),
        ("vit_large_patch16", 329_239_296, 302_592),
        ("vit_huge_patch14", 656_613_964, 460_544),
    ],
)
def test_sizes_are_the_papers(backbone: str, trained: int, fixed: int) -> None:
    """B/16 by hand: 12 blocks of 12 d^2 + 13 d, d = 768, and 8 of d = 512; 197 x (768 + 512) positions."""
    with torch.device("meta"):
        method = fcmae.create_method("mae", backbone=backbone, image_size=224)
    assert sum(p.numel() for p in method.parameters()) == trained
    assert sum(b.numel() for b in method.buffers()) == fixed
    if backbone == "vit_base_patch16":
        blocks = sum(n * (12 * d * d + 13 * d) for n, d in ((12, 768), (8, 512)))
        ends = 769 * 768 + 768 + 2 * 768 + 769 * 512 + 512 + 2 * 512 + 513 * 768
        assert trained == blocks + ends and fixed == 197 * (768 + 512)


@pytest.mark.parametrize("in_chans", [1, 3, 12])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("image_size", [(32, 48), 40])
def test_prediction_loss_and_gradients_are_the_definitions(
    image_size: int | tuple[int, int], norm_pix_loss: bool, in_chans: int
) -> None:
    method = in_float64(small_method(image_size=image_size, in_chans=in_chans, norm_pix_loss=norm_pix_loss))
    height, width = method.image_size
    images = torch.randn(3, in_chans, height, width, dtype=torch.float64)
    ids = method.draw_visible_ids(images, torch.Generator().manual_seed(1))
    out = method(images, visible_ids=ids)

    names = official_names(method)
    state = {name: method.state_dict(keep_vars=True)[ours] for name, ours in names.items()}
    options = {"patch": 8, "heads": 3, "decoder_heads": 4, "norm_pix_loss": norm_pix_loss}
    loss, pred = mae(state, images, out.visible, **options)
    assert torch.allclose(out.loss, loss, rtol=1e-12, atol=0)
    assert torch.allclose(out.pred, pred, rtol=1e-10, atol=1e-12)
    parameters = list(method.parameters())
    actual = torch.autograd.grad(out.loss, parameters)
    expected = torch.autograd.grad(loss, parameters)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for (name, _), a, e in zip(method.named_parameters(), actual, expected, strict=True):
        assert torch.allclose(a, e, rtol=1e-10, atol=1e-12 * largest), name
        assert bool(e.any()), name


def wave(count: int, number: int) -> Tensor:
    return 0.3 * torch.sin(torch.arange(count, dtype=torch.float64) * (0.7 + 0.01 * number) + number)


@pytest.mark.parametrize(
    ("norm_pix_loss", "loss", "gradients"),
    [
        (True, 2.148141062283577, (0.001350974530096477, 0.4830975635566926, 0.028780920600320885)),
        (False, 1.5572754453257873, (0.0013421107645925066, 0.4805367400412944, 0.028540240768706232)),
    ],
)
def test_values_are_those_of_the_authors_code(
    norm_pix_loss: bool, loss: float, gradients: tuple[float, ...]
) -> None:
    """Recorded from the authors' `MaskedAutoencoderViT` (mae at efb2a80, timm 1.0.31, float64), with these
    sizes, weights and images.
    """
    method = small_method(image_size=32, norm_pix_loss=norm_pix_loss).double()
    parameters = {name.partition(".")[2]: p for name, p in method.named_parameters()}
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(parameters.items())):
            values = wave(parameter.numel(), number).view(parameter.shape)
            parameter.copy_(values + float(parameter.ndim == 1))
    images = 3 * wave(2 * 3 * 32 * 32, 5).view(2, 3, 32, 32)
    out = method(images, visible_ids=torch.tensor([[1, 4, 10, 15], [0, 3, 6, 13]]))
    assert float(out.loss.detach()) == pytest.approx(loss, rel=1e-12)
    assert float(out.pred.detach().abs().sum()) == pytest.approx(6128.929118431105, rel=1e-12)
    assert float(out.pred[1, 7, 100].detach()) == pytest.approx(0.44074813773349975, rel=1e-11)
    of = [parameters[name] for name in ("cls_token", "mask_token", "blocks.0.attn.qkv.weight")]
    actual = [float(gradient.abs().sum()) for gradient in torch.autograd.grad(out.loss, of)]
    assert actual == pytest.approx(list(gradients), rel=1e-10)


def test_a_cell_of_several_tokens_is_normalised_as_one() -> None:
    method = in_float64(small_method(patch_size=16))
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    visible = torch.tensor([[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0]]]).bool()
    out = method(images, visible=visible)
    tokens = visible.repeat_interleave(2, 1).repeat_interleave(2, 2)
    state = {name: method.state_dict()[ours] for name, ours in official_names(method).items()}
    _, pred = mae(state, images, tokens, patch=8, heads=3, decoder_heads=4, norm_pix_loss=True)
    squares = pred.view(2, 2, 2, 3, 2, 8, 8, 3).permute(0, 1, 3, 2, 5, 4, 6, 7)
    cells = squares.reshape(2, 6, 16 * 16 * 3)
    assert torch.allclose(out.pred, cells, rtol=1e-10, atol=1e-12)
    loss = reconstruction_loss(cells, patchify(images, 16), ~visible.flatten(1), norm_pix_loss=True)
    assert torch.allclose(out.loss, loss, rtol=1e-12, atol=0)


def test_predictions_ignore_masked_pixels() -> None:
    method = shaken(small_method())
    images = torch.randn(2, 3, 32, 48)
    ids = method.draw_visible_ids(images)
    out = method(images, visible_ids=ids)
    other = torch.where(pixels_of(out.visible, 8), images, 100.0)
    assert torch.equal(method(other, visible_ids=ids).pred, out.pred)
    seen = torch.where(pixels_of(out.visible, 8), 100.0, images)
    assert not torch.allclose(method(seen, visible_ids=ids).pred, out.pred, atol=1e-2)


@pytest.mark.parametrize("sampling", ["random", "block", "grid"])
def test_every_sampling_keeps_a_quarter(sampling: str) -> None:
    method = small_method(image_size=112, mask_sampling=sampling)
    for size, kept in ((112, 49), (448, 784)):
        images = torch.randn(2, 3, size, size)
        ids = method.draw_visible_ids(images, torch.Generator().manual_seed(0))
        assert ids.shape == (2, kept) and torch.equal(ids[0], ids[1]) == (sampling == "grid")
    assert bool(torch.isfinite(method(torch.randn(2, 3, 112, 112)).loss))


def test_the_state_dict_holds_the_positions_of_the_image_size() -> None:
    method = small_method(image_size=(16, 64))
    assert method.encoder.pos_embed.shape == (1, 17, 24)
    assert method.decoder.decoder_pos_embed.shape == (1, 17, 16)
    # Weights of another size load, and give what they gave.
    other = small_method(image_size=(32, 48))
    other.load_state_dict(shaken(method).state_dict())
    images, visible = torch.randn(1, 3, 24, 40), torch.eye(3, 5).bool()[None]
    assert torch.equal(method(images, visible=visible).pred, other(images, visible=visible).pred)


def test_initialisation_is_maes() -> None:
    method = small_method(dims=(256,), num_heads=4, decoder_dim=256)
    encoder, decoder = method.encoder, method.decoder
    for linear in (m for m in method.modules() if isinstance(m, nn.Linear)):
        assert float(linear.weight.detach().std()) == pytest.approx(
            (2 / sum(linear.weight.shape)) ** 0.5, rel=0.02
        )
        assert not linear.bias.any()
    kernel = encoder.patch_embed.proj.weight.detach()
    assert float(kernel.std()) == pytest.approx((2 / (256 + 3 * 64)) ** 0.5, rel=0.02)
    for token in (encoder.cls_token, decoder.mask_token):
        assert float(token.detach().std()) == pytest.approx(0.02, rel=0.15)


def test_twenty_steps_overfit_one_batch() -> None:
    method = small_method()
    assert_overfits(method, grid=(4, 6), patch_size=8)


def test_the_step_compiles_without_a_graph_break() -> None:
    method = shaken(small_method(depths=(1,), decoder_depth=1))
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    for batch_size in (2, 3):
        images = torch.randn(batch_size, 3, 48, 64)  # not the size whose positions are kept
        ids = method.draw_visible_ids(images, torch.Generator().manual_seed(5))
        expected, out = method(images, visible_ids=ids), compiled(images, visible_ids=ids)
        assert torch.equal(out.visible, expected.visible)
        assert torch.allclose(out.loss, expected.loss, rtol=1e-5)
        eager = torch.autograd.grad(expected.loss, list(method.parameters()))
        graph = torch.autograd.grad(out.loss, list(method.parameters()))
        largest = max(float(gradient.abs().max()) for gradient in eager)
        for (name, _), a, b in zip(method.named_parameters(), graph, eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * largest), name


def test_a_perfect_prediction_reconstructs_the_image() -> None:
    """The report reads predictions back by the target's mean and deviation."""
    method = small_method()
    images, visible = torch.randn(2, 3, 32, 48), torch.zeros(2, 4, 6).bool()
    visible[:, 1, 2:4] = True
    patches = patchify(images, 8)
    target = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()

    def exact(pixels: Tensor) -> Tensor:
        return target

    method.patches_of = exact
    assert torch.allclose(reconstruct(method, images, visible), images, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "divisible by the patch size 8"),
        ({"mask_ratio": 0.99}, "got 0 visible"),
        ({"patch_size": 12}, "multiple of the encoder's largest stride 8"),
        ({"mask_sampling": "blocks"}, "Did you mean block"),
        ({"mask_sampling": "grid", "mask_ratio": 0.5}, "expected 0.75, since grid sampling"),
        ({"decoder_heads": 3}, "divisor of the width 16 in 2 blocks, got 3"),
        ({"decoder_dim": 18, "decoder_heads": 2}, "divisible by 4 for sin-cos positions, got 18"),
        ({"backbone": "convnextv2_atto", "num_heads": None, "depths": None, "dims": None}, "a ViTEncoder"),
        ({"mask_ration": 0.5}, "Did you mean mask_ratio"),
    ],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_method(**options)


def test_ragged_masks_are_refused_in_one_line() -> None:
    visible = torch.zeros(2, 4, 6, dtype=torch.bool)
    visible[0, 0, :2] = visible[1, 3] = True
    with pytest.raises(InputError, match=r"as many visible patches in every image.* got 2 to 6") as error:
        small_method()(torch.randn(2, 3, 32, 48), visible=visible)
    assert "\n" not in str(error.value)
