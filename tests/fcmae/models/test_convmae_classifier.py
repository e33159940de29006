"""ConvMAE as a classifier: the original's names and size, and what it computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fcmae
from fcmae.models import ConvMAEEncoder, find_preset
from fcmae.models.convmae_classifier import ConvMAEClassifier

SMALL = {"depths": (1, 2, 2), "dims": (8, 12, 16), "num_heads": 2, "num_classes": 5}


def test_names_and_size_are_the_originals() -> None:
    with torch.device("meta"):
        classifier = ConvMAEClassifier(**vars(find_preset("convmae_base")), num_classes=1000)
        encoder = fcmae.create_backbone("convmae_base").state_dict()
    state = classifier.state_dict()
    own = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert state.keys() - encoder.keys() == own
    assert encoder.keys() - state.keys() == {"norm.weight", "norm.bias"}
    # The authors' code gives 85.37 M with its trained positions; README.md rounds to 88.
    assert sum(tensor.numel() for tensor in state.values()) == 85_374_824


def test_logits_are_those_of_the_normed_mean_token() -> None:
    torch.manual_seed(0)
    classifier = ConvMAEClassifier(**SMALL)
    nn.init.normal_(classifier.fc_norm.weight)
    images = torch.randn(2, 3, 32, 48)
    tokens = ConvMAEEncoder.forward(classifier, images)[-1]
    assert isinstance(tokens, torch.Tensor)
    mean = tokens.flatten(1, 2).mean(1)
    normed = F.layer_norm(mean, (16,), classifier.fc_norm.weight, classifier.fc_norm.bias, 1e-6)
    assert torch.equal(classifier(images), classifier.head(normed))


@pytest.mark.parametrize(("scale", "std"), [(1.0, 0.02), (0.001, 2e-5)])
def test_the_heads_first_weights(scale: float, std: float) -> None:
    torch.manual_seed(0)
    options = {**SMALL, "num_classes": 1000, "head_init_scale": scale}
    classifier = ConvMAEClassifier(**options)
    assert float(classifier.head.weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert not classifier.head.bias.any()
