"""k-NN: scikit-learn's answer, chance without information, and bad input."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fcmae.config import DataConfig
from fcmae.data import eval_transform, evaluation_batches, open_dataset
from fcmae.errors import InputError
from fcmae.evaluation.frozen.knn import embed_images, knn_accuracy, knn_predict
from fcmae.models import create_backbone


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_votes_are_those_of_scikit_learn(neighbours: int):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (260,), generator=generator)
    features = torch.randn(260, 6, generator=generator, dtype=torch.float64)
    features[:, :4] += 1.5 * torch.nn.functional.one_hot(labels, 4)
    theirs = KNeighborsClassifier(
        neighbours,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / 0.07),
    )
    theirs.fit(features[:200], labels[:200])
    expected = torch.from_numpy(theirs.predict(features[200:]))
    found = knn_predict(features[200:], features[:200], labels[:200], neighbours=neighbours, chunk_size=7)
    assert torch.equal(found, expected)
    assert 0.4 < (found == labels[200:]).double().mean() < 1  # neither trivial nor noise


def test_weights_decide_against_the_majority():
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    found = knn_predict(torch.tensor([[1.0, 0.0]]), train, torch.tensor([1, 0, 0]), neighbours=3)
    assert found.tolist() == [1]  # exp(0) against 2 exp(-0.2 / 0.07) = 0.11


def test_labels_that_mean_nothing_give_chance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 8, generator=generator)
    labels = torch.randint(0, 10, (2000,), generator=generator)
    accuracy = knn_accuracy(features[1000:], labels[1000:], features[:1000], labels[:1000])
    assert abs(accuracy - 0.1) < 4 * (0.1 * 0.9 / 1000) ** 0.5


def test_embeds_every_image_once_in_order():
    config = DataConfig(source="digits", image_size=32, workers=0)
    dataset = open_dataset(config, split="all", labelled=True).subset(range(10))
    encoder = create_backbone("convnextv2_atto", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), drop_path=0.5)
    batches = list(evaluation_batches(dataset, eval_transform(config), batch_size=4, workers=0))
    features, labels = embed_images(encoder, batches)
    assert labels.tolist() == dataset.labels and encoder.training
    whole = encoder.eval().embed(torch.cat([batch.images for batch in batches]))
    torch.testing.assert_close(features, whole.detach())


def test_too_many_neighbours_are_refused():
    with pytest.raises(InputError, match=r"knn: expected 1 to 3 neighbours .*, got 20\.$"):
        knn_predict(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
