"""k nearest neighbours on frozen features: how well an encoder tells classes apart without any training."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from fcmae.data import Batch
from fcmae.errors import InputError
from fcmae.models import Encoder


@torch.no_grad()
def embed_images(encoder: Encoder, batches: Iterable[Batch[Tensor]]) -> tuple[Tensor, Tensor]:
    """One vector an image and its label, on the CPU.

    The encoder's mode is put back.

    Args:
        encoder: Its `embed` is called on whole images, in evaluation.
        batches: Labelled.
    Returns:
        ([N, D] in float32, int64 [N]).
    """
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    features, labels = [], []
    for batch in batches:
        assert batch.labels is not None
        features.append(encoder.embed(batch.images.to(device)).float().cpu())
        labels.append(batch.labels)
    encoder.train(was_training)
    return torch.cat(features), torch.cat(labels)


def knn_predict(
    features: Tensor,
    train_features: Tensor,
    train_labels: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> Tensor:
    """The class of each image, int64 [N], by a vote of its nearest training images.

    The neighbours are those of largest cosine, and each votes with the weight exp(cosine / temperature).

    Args:
        features: [N, D].
        train_features: [M, D].
        train_labels: int64 [M].
        neighbours: How many vote, at most M (Wu et al. 2018, Caron et al. 2021: 20).
        temperature: Small values favour the nearest (both papers: 0.07).
        chunk_size: Images compared at once, which bounds the memory.
    Raises:
        InputError: more neighbours than training images, or none.
    """
    if not 1 <= neighbours <= len(train_features):
        raise InputError(
            f"knn: expected 1 to {len(train_features)} neighbours (the training images), got {neighbours}."
        )
    train_features = F.normalize(train_features, dim=1)
    votes_of = F.one_hot(train_labels).to(train_features)
    predicted = []
    for chunk in F.normalize(features, dim=1).split(chunk_size):
        cosine, nearest = (chunk @ train_features.T).topk(neighbours, dim=1)
        # The largest cosine counts 1: the weights' common factor could overflow.
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        predicted.append((weight.unsqueeze(2) * votes_of[nearest]).sum(dim=1).argmax(dim=1))
    return torch.cat(predicted)


def knn_accuracy(
    features: Tensor, labels: Tensor, train_features: Tensor, train_labels: Tensor, *, neighbours: int = 20
) -> float:
    """Share of images whose neighbours vote for their class; see `knn_predict`."""
    predicted = knn_predict(features, train_features, train_labels, neighbours=neighbours)
    return (predicted == labels).float().mean().item()
