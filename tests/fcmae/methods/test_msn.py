"""MSN: what its networks see, what trains and what is averaged, for every kind of encoder."""

import pytest
import torch
from torch import Tensor

import fcmae
from fcmae.data import Views
from fcmae.errors import InputError
from fcmae.methods import MSN
from fcmae.methods.msn_loss import msn_loss
from fcmae.models import create_backbone
from fcmae.training.engine.optim import build_adamw, parameter_groups
from sparse_ops import ActiveSites

CONVNET = {"backbone": "convnextv2_atto", "depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
VIT = {"backbone": "vit_tiny_patch16", "depths": (2,), "dims": (16,), "num_heads": 2, "positions": "learnt"}
CONVMAE = {"backbone": "convmae_small", "depths": (1, 1, 1), "dims": (8, 8, 16), "num_heads": 2}
ENCODERS = pytest.mark.parametrize("encoder", [CONVNET, VIT, CONVMAE], ids=["convnextv2", "vit", "convmae"])
SMALL = {"prototypes": 12, "hidden_dim": 16, "output_dim": 8, "focal_size": 32, "mask_ratio": 0.3}


def small_method(encoder: dict, **options) -> MSN:
    torch.manual_seed(0)
    method = fcmae.create_method("msn", **{"image_size": 96, **SMALL, **encoder, **options})
    assert isinstance(method, MSN)
    return method


def views(batch_size: int = 4, *, anchors: int = 2, focal: int = 3) -> Views:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    whole = (3, 96, 96)
    small = draw(batch_size, focal, 3, 32, 32) if focal else torch.empty(batch_size, 0)
    return Views(draw(batch_size, *whole), draw(batch_size, anchors, *whole), small)


def learn(method: MSN, images: Views, *, steps: int = 1) -> None:
    groups = parameter_groups(method, weight_decay=0.1)
    optimizer = build_adamw(groups, betas=(0.9, 0.95), device=torch.device("cpu"))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(steps):
        method(images, torch.Generator().manual_seed(0)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@ENCODERS
def test_loss_is_that_of_views_taken_one_by_one(encoder: dict):
    # In evaluation BatchNorm is an affine map, so that views can go through the networks on their own.
    method, images = small_method(encoder).double().eval(), Views(*(view.double() for view in views()))
    ids = method.draw_visible_ids(images, torch.Generator().manual_seed(0))
    grid = method.grid_of(images)
    tile = method.patch_size // method.encoder.strides[0]
    rows = []
    for number in range(2):
        for image in range(4):
            row = number * 4 + image
            sites = ActiveSites.from_visible_ids(ids[row : row + 1], grid=grid, tile=tile)
            rows.append(method.encoder.embed(images.anchors[image, number][None], sites=sites))
    rows += [
        method.encoder.embed(images.focal[image, number][None]) for number in range(3) for image in range(4)
    ]
    targets = method.target_projection(method.target_encoder.embed(images.target))
    expected = msn_loss(
        method.projection(torch.cat(rows)),
        targets,
        method.prototypes,
        temperature=0.1,
        sharpening=0.25,
        sinkhorn_iterations=3,
        me_max_weight=1.0,
        entropy_weight=0.0,
    )
    found = method(images, visible_ids=ids)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-10)
    assert set(found.logs) == {
        "cross_entropy", "mean_entropy", "target_entropy", "embedding_std",
        "prototypes_in_use", "prototype_share",
    }  # fmt: skip
    assert not any(value.requires_grad for value in found.logs.values())
    assert found.logs["prototypes_in_use"] == len(set(expected.chosen.tolist()))
    assert (
        found.logs["prototype_share"] == found.logs["prototypes_in_use"] / 4
    )  # images, fewer than prototypes


@ENCODERS
def test_masked_pixels_of_anchors_change_nothing(encoder: dict):
    method, images = small_method(encoder), views()
    ids = method.draw_visible_ids(images, torch.Generator().manual_seed(0))
    side = method.patch_size
    changed = images.anchors.clone()
    hidden = 0
    for row, kept in enumerate(ids.tolist()):
        anchor = changed[row % 4, row // 4]
        for patch in set(range((96 // side) ** 2)) - set(kept):
            y, x = side * (patch // (96 // side)), side * (patch % (96 // side))
            anchor[:, y : y + side, x : x + side] = torch.nan if row % 2 else 1e3
            hidden += 1
    assert hidden
    results = []
    for anchors in (images.anchors, changed):
        out = method(images._replace(anchors=anchors), visible_ids=ids)
        results.append([out.loss, *torch.autograd.grad(out.loss, list(_trained(method).values()))])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)
    images.anchors[0, 0] += 1.0  # visible pixels count
    assert not torch.equal(method(images, visible_ids=ids).loss, results[0][0])


def _trained(method: MSN) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}


def test_masks_are_each_anchors_own_or_as_in_the_original_one_for_all():
    images = views(8)
    own = small_method(VIT).draw_visible_ids(images, torch.Generator().manual_seed(0))
    assert own.shape == (16, 25) and len({tuple(row) for row in own.tolist()}) > 8  # int(36 * 0.7)
    shared = small_method(VIT, mask_sharing="original").draw_visible_ids(
        images, torch.Generator().manual_seed(0)
    )
    assert shared.shape == (16, 25) and len({tuple(row) for row in shared.tolist()}) == 1


@ENCODERS
def test_encoder_head_and_prototypes_train_and_the_target_does_not(encoder: dict):
    method = small_method(encoder)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(views()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in _trained(method).values())
    method.zero_grad()
    learn(method, views())
    for name, value in method.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("target_"), name
    decaying = {
        name
        for group in parameter_groups(method, weight_decay=0.1)
        for name, _ in group["params"]
        if group["weight_decay"]
    }
    assert "projection.fc1.weight" in decaying and "prototypes" not in decaying
    assert not [name for name in decaying if name.startswith("target_")]


@ENCODERS
def test_head_begins_with_a_norm_where_the_encoder_ends_without_one(encoder: dict):
    method = small_method(encoder)
    vectors = method.encoder.embed(10 * views().target)
    normed = abs(vectors.mean(dim=1)).max() < 1e-5 and abs(vectors.std(dim=1, correction=0) - 1).max() < 1e-2
    assert hasattr(method.projection, "norm") != normed


def test_prototypes_start_uniform():
    prototypes = small_method(VIT, prototypes=4000, output_dim=4).prototypes
    assert prototypes.abs().max() <= 0.5 < prototypes.abs().max() + 0.01
    assert prototypes.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_target_is_the_moving_average_of_parameters_only():
    method = small_method(CONVNET, momentum=0.9)
    method.train()
    learn(method, views(), steps=2)
    online, target = dict(method.encoder.named_parameters()), dict(method.target_encoder.named_parameters())
    old = {name: value.clone() for name, value in target.items()}
    buffers = {name: value.clone() for name, value in method.target_projection.named_buffers()}
    method.after_step(0.5)
    for name, value in target.items():
        torch.testing.assert_close(value, 0.95 * old[name] + 0.05 * online[name])
    head, target_head = method.projection, method.target_projection
    assert not torch.equal(head.bn1.running_mean, buffers["bn1.running_mean"])  # type: ignore[arg-type]
    assert all(torch.equal(value, buffers[name]) for name, value in target_head.named_buffers())
    assert not torch.equal(target_head.fc3.weight, head.fc3.weight)
    last = {name: value.clone() for name, value in target.items()}
    method.after_step(1.0)  # at the end of the schedule the momentum is 1
    assert all(torch.equal(value, last[name]) for name, value in target.items())


def test_state_dict_keeps_both_networks_and_a_head_that_no_classifier_takes_for_its_own():
    parts = {name.partition(".")[0] for name in small_method(CONVNET).state_dict()}
    assert parts == {"encoder", "projection", "prototypes", "target_encoder", "target_projection"}


def test_target_drops_no_paths():
    method = small_method({**CONVNET, "drop_path": 0.9}, focal_views=0).train()
    images = views(focal=0)
    assert torch.equal(method.target_encoder.embed(images.target), method.target_encoder.embed(images.target))
    assert not torch.equal(method.encoder.embed(images.target), method.encoder.embed(images.target))


def test_no_focal_views_are_possible():
    out = small_method(VIT, focal_views=0)(views(focal=0))
    out.loss.backward()
    assert out.loss.isfinite()


@pytest.mark.parametrize("ragged", [False, True])
def test_pooling_is_the_mean_of_visible_sites(ragged: bool):
    encoder = create_backbone("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)).double()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    visible = torch.zeros(2, 3, 3, dtype=torch.bool)
    visible[0, 0, :2] = visible[1, 2, 1:] = True
    visible[1, 1, 1] = ragged
    sites = ActiveSites.from_patches(visible, tile=8)
    dense = encoder(images, visible=visible, execution="masked_dense")[-1].features
    for image in range(2):
        expected = dense[image][visible[image]].mean(dim=0)
        torch.testing.assert_close(encoder.embed(images, sites=sites)[image], expected)
    everything = ActiveSites.from_patches(torch.ones_like(visible), tile=8)
    torch.testing.assert_close(encoder.embed(images), encoder.embed(images, sites=everything))


def test_a_collapsed_encoder_shows_in_the_logs():
    method, images = small_method(CONVNET), views(8)
    healthy = method(images).logs
    with torch.no_grad():
        for parameter in method.target_encoder.parameters():
            parameter.zero_()
        method.target_encoder.stages[-1].blocks[-1].mlp.fc2.bias.fill_(1.0)  # type: ignore[union-attr,index]
    collapsed = method(images).logs
    assert healthy["embedding_std"] > 0.1 and healthy["prototypes_in_use"] > 2
    assert collapsed["embedding_std"] < 1e-6 and collapsed["prototypes_in_use"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 48}, r"patch_size: expected a multiple of .* stride 32, got 48\."),
        ({"focal_size": 40}, r"focal_size: expected a multiple of .* stride 32, got 40\."),
        ({"mask_ratio": 0.99}, r"mask_ratio: expected some of 9 patches visible"),
        ({"mask_sharing": "batch"}, r"mask_sharing: expected who shares a mask, got 'batch'"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        small_method(CONVNET, **options)
