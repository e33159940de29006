"""The LARS probe: the authors' step, what it learns, and what it must not."""

import pytest
import torch
import torch.nn.functional as F

from fcmae.config import ProbeConfig
from fcmae.errors import InputError
from fcmae.evaluation.frozen import shuffle_labels
from fcmae.evaluation.knn import knn_predict
from fcmae.evaluation.lars_probe import lars_probe_accuracy, train_lars_probe
from fcmae.evaluation.lowshot import lowshot_accuracy
from fcmae.evaluation.probe import probe_accuracy

CPU = torch.device("cpu")


def _clusters(count: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return 4 * F.one_hot(labels, 6).float() + noise * torch.randn(count, 6, generator=generator), labels


def test_two_steps_are_those_of_the_papers_optimiser():
    features, labels = _clusters(12, seed=0)
    config = ProbeConfig(solver="lars", epochs=2, warmup_epochs=1, batch_size=12, base_lr=30.0)
    probe = train_lars_probe(features, labels, classes=4, config=config, seed=3, device=CPU)
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
    found = lars_probe_accuracy(*val, *train, config=config, seed=0, device=CPU)
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
        found = lars_probe_accuracy(*sets, config=config, seed=0, device=CPU)
    else:
        few = (train_features[:20], shuffled[:20])
        found = lowshot_accuracy(val_features, val_labels, *few, penalty=0.0025)
    assert abs(found - 0.25) < 4 * (0.25 * 0.75 / 3000) ** 0.5


def test_impossible_recipes_are_refused():
    with pytest.raises(InputError, match=r"probe.warmup_epochs: expected 0 to less than .*=5, got 10\.$"):
        ProbeConfig(epochs=5)
