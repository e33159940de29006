"""What may stand in GRN's place: definitions, sparse against masked dense, images without visible sites."""

import pytest
import timm
import torch
from timm.layers.cbam import ChannelAttn
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn
from torch.nn import functional as F

import fcmae
from fcmae.config import GATINGS
from fcmae.convert.networks.gating import gate_of
from fcmae.errors import InputError
from fcmae.models import ConvNeXtV2Encoder
from fcmae.models.gates import Cbam, GrnVariant, SqueezeExcite, image_max, image_mean, image_sum
from sparse_ops import ActiveSites, Image, MaskedImage, SparseImage, features_of

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
SAME = {"rtol": 1e-10, "atol": 1e-10}
GATES = [gating for gating in GATINGS if gating != "grn"]


def masks() -> dict[str, Tensor]:
    """Visible patches, [3, 3, 4]: as many in each image, others in each and none in the last, none at all."""
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(3, 12, generator=generator).argsort(dim=1)
    even = order < 5
    ragged = order < torch.tensor([[7], [1], [0]])
    return {name: mask.view(3, 3, 4) for name, mask in
            {"even": even, "ragged": ragged, "nothing": torch.zeros(3, 12) > 0}.items()}  # fmt: skip


MASKS = masks()


def shaken(module: nn.Module) -> nn.Module:
    """Every parameter matters, in float64: at the start GRN is the identity."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def small_encoder(gating: str, **options) -> ConvNeXtV2Encoder:
    encoder = fcmae.create_backbone("convnextv2_atto", gating=gating, **{**SMALL, **options})
    assert isinstance(encoder, ConvNeXtV2Encoder)
    shaken(encoder)
    return encoder


def representations(dense: Tensor, visible: Tensor) -> tuple[SparseImage, MaskedImage]:
    sites = ActiveSites.from_mask(visible)
    hidden = dense.masked_fill(~sites.active.unsqueeze(-1), 1e3)
    return SparseImage.from_dense(dense, sites), MaskedImage(hidden, sites)


def active_rows(x: Image) -> Tensor:
    assert isinstance(x, SparseImage | MaskedImage)
    return (x.densify() if isinstance(x, SparseImage) else x.features)[x.sites.active]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("gating", GATES)
def test_sparse_is_masked_dense_in_outputs_and_gradients(gating: str, mask: str) -> None:
    images = torch.randn(3, 3, 96, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for execution in ("sparse", "masked_dense"):
        encoder = small_encoder(gating)
        rows = [active_rows(x) for x in encoder(images, visible=MASKS[mask], execution=execution)]
        loss = sum((row.square().sum() for row in rows), torch.zeros((), dtype=torch.float64))
        results.append([*rows, *torch.autograd.grad(loss, list(encoder.parameters()))])
    for sparse, masked in zip(*results, strict=True):
        assert bool(sparse.isfinite().all())
        torch.testing.assert_close(sparse, masked, **SAME)


@pytest.mark.parametrize("gating", GATES)
def test_an_image_alone_is_the_same_as_in_a_batch(gating: str) -> None:
    encoder, visible = small_encoder(gating), MASKS["ragged"]
    images = torch.randn(3, 3, 96, 128, dtype=torch.float64)
    together = encoder(images, visible=visible)[-1].densify()
    alone = encoder(images[1:2], visible=visible[1:2])[-1].densify()
    torch.testing.assert_close(together[1:2], alone, **SAME)


@pytest.mark.parametrize("mask", MASKS)
def test_statistics_of_integers_are_exact(mask: str) -> None:
    dense = torch.randint(-9, 9, (3, 3, 4, 5), generator=torch.Generator().manual_seed(0)).double()
    dense -= 20  # a maximum that hidden zeros would take
    sparse, masked = representations(dense, MASKS[mask])
    for statistic, one in ((image_sum, lambda x: x.sum(0)), (image_mean, lambda x: x.mean(0)),
                           (image_max, lambda x: x.amax(0))):  # fmt: skip
        expected = torch.zeros(3, 5, dtype=torch.float64)
        for image in range(3):
            rows = dense[image][sparse.sites.active[image]]
            if len(rows):
                expected[image] = one(rows)
        assert torch.equal(statistic(sparse), expected)
        assert torch.equal(statistic(masked), expected)
        assert torch.equal(statistic(dense), torch.stack([one(image.flatten(0, 1)) for image in dense]))


GRN = {
    "grn_l1": lambda x: x.abs().sum((1, 2)) / (x.abs().sum((1, 2)).mean(1, True) + 1e-6),
    "grn_mean": lambda x: x.mean((1, 2)) / (x.mean((1, 2)).abs().mean(1, True) + 1e-6),
    "grn_standardise": lambda x: (
        (x.norm(dim=(1, 2)) - x.norm(dim=(1, 2)).mean(1, True))
        / (x.norm(dim=(1, 2)).var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    ),
    "grn_inverse": lambda x: 1 / (x.norm(dim=(1, 2)).mean(1, True) + 1e-6),
    "grn_no_norm": lambda x: x.norm(dim=(1, 2)),
}


@pytest.mark.parametrize("kind", GRN)
def test_grn_variants_are_their_formulas(kind: str) -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    layer = GrnVariant(kind, 7).double()
    assert torch.equal(features_of(layer(x)), x)
    shaken(layer)
    expected = x + layer.weight * x * GRN[kind](x)[:, None, None] + layer.bias
    torch.testing.assert_close(layer(x), expected, **SAME)


def test_se_and_cbams_channels_are_timms() -> None:
    x = torch.randn(2, 5, 6, 32, dtype=torch.float64)
    ours, theirs = SqueezeExcite(32), SEModule(32, rd_divisor=1).double()
    shaken(ours)
    theirs.load_state_dict(
        {name: weight.view_as(theirs.state_dict()[name]) for name, weight in ours.state_dict().items()}
    )
    torch.testing.assert_close(ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), **SAME)

    cbam, channels = Cbam(32), ChannelAttn(32).double()
    shaken(cbam)
    channels.load_state_dict(
        {f"{name}.weight": getattr(cbam, name).weight[:, :, None, None] for name in ("fc1", "fc2")}
    )
    gated = channels(x.permute(0, 3, 1, 2))
    maps = torch.stack([gated.mean(1), gated.amax(1)], dim=1)
    places = F.conv2d(maps, cbam.conv.weight, cbam.conv.bias, padding=3).sigmoid()
    torch.testing.assert_close(cbam(x), (gated * places).permute(0, 2, 3, 1), **SAME)


@pytest.mark.parametrize("gating", ["none", "layer_scale"])
def test_without_grn_it_is_timms_v1(gating: str) -> None:
    scale = 1e-6 if gating == "layer_scale" else None
    options = {"use_grn": False, "ls_init_value": scale, "num_classes": 0, **SMALL}
    theirs = timm.create_model("convnextv2_tiny", **options)
    untouched = fcmae.create_backbone("convnextv2_tiny", gating=gating, **SMALL)
    if scale:
        assert torch.equal(untouched.stages[0].blocks[0].gamma, theirs.stages[0].blocks[0].gamma)
    shaken(theirs)
    ours = untouched.double()
    names = [name for name in theirs.state_dict() if not name.startswith("head.")]
    assert list(ours.state_dict()) == names
    fcmae.load_weights(ours, theirs.state_dict())
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = theirs.forward_features(images).permute(0, 2, 3, 1)
    everything = torch.ones(1, 2, 3, dtype=torch.bool)
    torch.testing.assert_close(ours(images, visible=everything)[-1].densify(), expected, **SAME)
    torch.testing.assert_close(ours(images)[-1], expected, **SAME)


def test_weights_tell_their_gate_by_its_name() -> None:
    for gating in GATINGS:
        names = [f"encoder.{name}" for name in small_encoder(gating).state_dict()]
        found = {gate for name in names if (gate := gate_of(name)) is not None}
        assert found == ({gating} if gating != "none" else set())


def test_under_autocast_statistics_stay_finite() -> None:
    """Sums over sites leave float16's range, where the features themselves do not."""
    x = torch.full((1, 56, 56, 16), 40.0, dtype=torch.float16)
    for kind in GRN:
        layer = GrnVariant(kind, 16)
        nn.init.constant_(layer.weight, 0.01)
        out = layer(x)
        assert out.dtype == torch.float16 and bool(out.isfinite().all())


def test_a_step_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    method = fcmae.create_method("fcmae", backbone="convnextv2_atto", image_size=64, gating="cbam", **SMALL)
    images = torch.randn(2, 3, 64, 64)
    ids = method.draw_visible_ids(images)
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    expected = method(images, visible_ids=ids).loss
    torch.testing.assert_close(compiled(images, visible_ids=ids).loss, expected, rtol=1e-5, atol=0)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match="Did you mean layer_scale"):
        fcmae.create_backbone("convnextv2_atto", gating="layerscale")
    with pytest.raises(InputError, match="expected image for gating se, got batch"):
        fcmae.create_backbone("convnextv2_atto", gating="se", grn_scope="batch")
    with pytest.raises(InputError, match="options that convmae_small has, got gating"):
        fcmae.create_backbone("convmae_small", gating="none")
