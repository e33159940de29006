"""The LARS probe: the authors' step and crops, what it learns, and what it must not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from encoder_runs import MODELS, save_run
from torch import nn

from fcmae.config import DataConfig, EvaluateConfig, ProbeConfig
from fcmae.data import finetune_transform
from fcmae.errors import InputError
from fcmae.evaluation.encoders import LoadedEncoder, load_encoder
from fcmae.evaluation.features import Split, open_split
from fcmae.evaluation.frozen import score
from fcmae.evaluation.frozen.knn import knn_predict
from fcmae.evaluation.frozen.lars_probe import (
    cached_batches,
    cropped_batches,
    length_of,
    probe_hits,
    train_lars_probe,
)
from fcmae.evaluation.frozen.lowshot import lowshot_accuracy
from fcmae.evaluation.frozen.probe import probe_accuracy
from fcmae.evaluation.frozen.score import shuffle_labels
from fcmae.protocols.evaluate import evaluate

CPU = torch.device("cpu")


def trained(features: torch.Tensor, labels: torch.Tensor, *, config: ProbeConfig, seed: int) -> nn.Module:
    """The probe of four classes on cached features."""
    length = length_of(len(features), config)
    batches = cached_batches(features, labels, length=length, seed=seed)
    return train_lars_probe(
        batches, width=features.shape[1], classes=4, length=length, config=config, seed=seed, device=CPU
    )


def _clusters(count: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return 4 * F.one_hot(labels, 6).float() + noise * torch.randn(count, 6, generator=generator), labels


def test_two_steps_are_those_of_the_papers_optimiser():
    features, labels = _clusters(12, seed=0)
    config = ProbeConfig(solver="lars", epochs=2, warmup_epochs=1, batch_size=12, base_lr=30.0)
    probe = trained(features, labels, config=config, seed=3)
    generator = torch.Generator().manual_seed(3)
    weight = torch.empty(4, 6)
    torch.nn.init.trunc_normal_(weight, std=0.01, generator=generator)
    bias = torch.zeros(4)
    normalised = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    # Epoch 0 begins the warm-up at rate 0: only its momentum acts on epoch 1, at the peak.
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for rate in (0.0, 30.0 * 12 / 256):
        weight.requires_grad_()
        bias.requires_grad_()
        loss = F.cross_entropy(normalised @ weight.T + bias, labels)
        gradients = list(torch.autograd.grad(loss, [weight, bias]))
        weight, bias = weight.detach(), bias.detach()
        gradients[0] = gradients[0] * 0.001 * weight.norm() / gradients[0].norm()
        momenta = [0.9 * old + new for old, new in zip(momenta, gradients, strict=True)]
        weight, bias = weight - rate * momenta[0], bias - rate * momenta[1]
    found = probe.get_submodule("1")
    torch.testing.assert_close(found.weight.detach(), weight)
    torch.testing.assert_close(found.bias.detach(), bias)


def test_learns_what_can_be_learnt():
    train, val = _clusters(400, seed=0), _clusters(400, seed=1)
    config = ProbeConfig(solver="lars", batch_size=50, base_lr=50.0)
    found = probe_hits(trained(*train, config=config, seed=0), *val, device=CPU)
    assert found > 0.97 and found > probe_accuracy(*val, *train) - 0.02


@pytest.mark.parametrize("protocol", ["knn", "lbfgs", "lars", "lowshot"])
def test_shuffled_labels_give_chance(protocol: str):
    """The validation labels are drawn by themselves: the hits are binomial, whatever is learnt."""
    train_features, labels = _clusters(400, seed=0)
    val_features, _ = _clusters(3000, seed=1)
    val_labels = torch.randint(0, 4, (3000,), generator=torch.Generator().manual_seed(2))
    shuffled = shuffle_labels(labels, seed=0)
    assert torch.equal(shuffled.bincount(), labels.bincount()) and not torch.equal(shuffled, labels)
    sets = (val_features, val_labels, train_features, shuffled)
    if protocol == "knn":
        found = (knn_predict(val_features, train_features, shuffled) == val_labels).double().mean().item()
    elif protocol == "lbfgs":
        found = probe_accuracy(*sets)
    elif protocol == "lars":
        config = ProbeConfig(solver="lars", epochs=12, batch_size=100, base_lr=50.0)
        probe = trained(train_features, shuffled, config=config, seed=0)
        found = probe_hits(probe, val_features, val_labels, device=CPU)
    else:
        few = (train_features[:20], shuffled[:20])
        found = lowshot_accuracy(val_features, val_labels, *few, penalty=0.0025)
    assert abs(found - 0.25) < 4 * (0.25 * 0.75 / 3000) ** 0.5


def test_impossible_recipes_are_refused():
    with pytest.raises(InputError, match=r"probe.warmup_epochs: expected 0 to less than .*=5, got 10\.$"):
        ProbeConfig(epochs=5)


def whole_images(data: DataConfig, split: Split) -> torch.Tensor:
    """What a transform makes that crops nothing away."""
    transform = finetune_transform(data, rand_augment=None, random_erasing=0.0)
    return torch.stack([transform(split.dataset.load(index)) for index in range(len(split.names))])


@pytest.fixture
def encoder(folder_data: DataConfig, tmp_path: Path) -> LoadedEncoder:
    save_run(tmp_path / "run", MODELS["convmae"], folder_data)
    return load_encoder(tmp_path / "run", in_chans=3)


def test_crops_are_drawn_anew_for_each_epoch_and_keep_their_labels(
    encoder: LoadedEncoder, folder_data: DataConfig
):
    split = open_split(folder_data, "train")
    names = torch.arange(18)  # as labels: which image a vector is of
    length = length_of(18, ProbeConfig(solver="lars", batch_size=7))
    assert length == (7, 2)

    def epochs(at_once: int, data: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
        batches = cropped_batches(
            encoder.encoder, split, names, data, length=length, epochs=18, at_once=at_once, seed=0
        )
        found = list(batches)
        assert len(found) == 36 and {len(labels) for _, labels in found} == {7}
        return torch.cat([features for features, _ in found]), torch.cat([labels for _, labels in found])

    free = replace(folder_data, crop_scale=(0.2, 1.0))
    features, labels = epochs(5, free)
    assert labels.bincount(minlength=18).tolist() == [14] * 18  # 36 x 7 = 14 passes over 18 images
    assert len({tuple(row.tolist()) for row in features[labels == 3]}) == 14
    again, same = epochs(18, free)  # how many the encoder sees at once changes nothing
    assert torch.equal(labels, same)
    torch.testing.assert_close(features, again)
    on_device, same = epochs(5, replace(free, transform_on="device"))
    assert torch.equal(labels, same)
    torch.testing.assert_close(features, on_device)

    # Crops of the whole image, never mirrored: each image has one vector, of its own pixels.
    still = replace(folder_data, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    features, labels = epochs(5, still)
    expected = encoder.encoder.embed(whole_images(still, split)).detach()
    torch.testing.assert_close(features, expected[labels])


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_command_trains_on_crops(
    folder_data: DataConfig, encoder: LoadedEncoder, tmp_path: Path, monkeypatch, shuffled: bool
):
    """The labels that it learns from are the images' own, or the shuffled ones, image by image."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = score.train_lars_probe

    def watched(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], **options: Any) -> nn.Module:
        return inner((seen.append(batch) or batch for batch in batches), **options)

    monkeypatch.setattr(score, "train_lars_probe", watched)
    still = replace(folder_data, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    probe = ProbeConfig(solver="lars", crops=True, epochs=2, warmup_epochs=1, batch_size=9)
    config = EvaluateConfig(
        protocols="probe",
        data=still,
        probe=probe,
        cache=str(tmp_path / "cache"),
        batch_size=4,
        shuffled=shuffled,
    )
    cells = evaluate(config, [encoder.name], log=lambda _: 0).cells
    assert cells[-1].settings.endswith(
        "2 epochs of batch 9, base_lr 0.1, random crops and flips of each epoch"
    )
    split = open_split(still, "train")
    wanted = shuffle_labels(split.labels, seed=0) if shuffled else split.labels
    own = encoder.encoder.embed(whole_images(still, split)).detach()
    for features, labels in seen[-4:]:
        assert torch.equal(labels, wanted[torch.cdist(features, own).argmin(dim=1)])
    assert len(seen) == 4 * (1 + shuffled)


def test_crops_need_the_solver_that_learns_in_batches():
    with pytest.raises(
        InputError, match=r"probe.crops: expected false with probe.solver=lbfgs, .* Add --pro"
    ):
        ProbeConfig(crops=True)
