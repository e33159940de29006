"""MSN's loss: every anchor view predicts the prototypes of its target view, and all prototypes are used."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fcmae.methods.msn_reduce import count_processes, reduce_max, reduce_sum


class MSNLoss(NamedTuple):
    """The loss and, detached, what it says about the assignments."""

    loss: Tensor
    """Scalar to minimise."""
    chosen: Tensor
    """The likeliest prototype of each target view before Sinkhorn, int64 [B]."""
    cross_entropy: Tensor
    """Of the targets and the anchors' predictions, mean over the anchors."""
    mean_entropy: Tensor
    """Of the anchors' mean prediction over all processes; log K where all prototypes are used alike."""
    target_entropy: Tensor
    """Mean over the targets; 0 where each chooses one prototype."""


def log_assignments(embeddings: Tensor, prototypes: Tensor, *, temperature: float) -> Tensor:
    """Log of softmax(cosine / temperature) over the prototypes.

    Args:
        embeddings: [N, D].
        prototypes: [K, D].
        temperature: The paper's tau.
    Returns:
        [N, K].
    """
    cosine = F.normalize(embeddings, dim=1) @ F.normalize(prototypes, dim=1).T
    return F.log_softmax(cosine / temperature, dim=1)


def sharpen(log_p: Tensor, *, sharpening: float) -> Tensor:
    """Log of p**(1 / T) over its sum, T = `sharpening`: [N, K]."""
    return F.log_softmax(log_p / sharpening, dim=1)


def sinkhorn(log_p: Tensor, *, iterations: int) -> Tensor:
    """Assignments of which, over all processes, every prototype receives nearly the same share.

    Each iteration scales the columns to N / K and then the rows to 1, N images in all processes; the rows
    are exact, the columns come near to N / K as iterations are added.

    Args:
        log_p: Log assignments, [N / processes, K].
        iterations: The original uses 3; 0 changes nothing.
    Returns:
        Log assignments, [N / processes, K].
    """
    for _ in range(iterations):
        log_p = log_p - _logsumexp_of_all(log_p)
        log_p = F.log_softmax(log_p, dim=1)
    return log_p


def log_mean(log_p: Tensor) -> Tensor:
    """Log of the mean assignment over all processes: [N, K] -> [K].

    In logs, since the gradient of an entropy at a probability that underflows to 0 is infinite.
    """
    return _logsumexp_of_all(log_p) - math.log(len(log_p) * count_processes())


def msn_loss(
    anchors: Tensor,
    targets: Tensor,
    prototypes: Tensor,
    *,
    temperature: float,
    sharpening: float,
    sinkhorn_iterations: int,
    me_max_weight: float,
    entropy_weight: float,
) -> MSNLoss:
    """Cross entropy of sharpened targets and predictions, minus the weighted entropy of the mean prediction.

    `mean H(p+, p) + me_max_weight * (log K - H(mean p)) + entropy_weight * mean H(p)`, p the anchors'
    assignments and p+ the targets': softmax, then sharpening, then Sinkhorn. The mean of p is taken over
    all processes, which must hold equally many anchors. At least float32, whatever the autocast.

    Args:
        anchors: Projected anchor views, [V * B, D]; those of image b are rows b, b + B, b + 2 B ...
        targets: Projected target views, [B, D]; no gradient reaches them.
        prototypes: [K, D].
        temperature: Of both softmaxes.
        sharpening: T; the targets' temperature becomes `temperature * T`.
        sinkhorn_iterations: 0 turns Sinkhorn off.
        me_max_weight: The paper's lambda.
        entropy_weight: Weight of the anchors' own entropy.
    Paper: Assran et al. 2022, Masked Siamese Networks, equation 1 and section 3.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        dtype = torch.promote_types(anchors.dtype, torch.float32)
        anchors, targets, prototypes = anchors.to(dtype), targets.detach().to(dtype), prototypes.to(dtype)
        log_p = log_assignments(anchors, prototypes, temperature=temperature)
        with torch.no_grad():
            log_targets = log_assignments(targets, prototypes, temperature=temperature)
            chosen = log_targets.argmax(dim=1)
            log_targets = sharpen(log_targets, sharpening=sharpening)
            log_targets = sinkhorn(log_targets, iterations=sinkhorn_iterations)
        views = len(anchors) // len(targets)
        cross_entropy = -(log_targets.exp().repeat(views, 1) * log_p).sum(dim=1).mean()
        mean_entropy = entropy(log_mean(log_p))
        loss = cross_entropy
        if me_max_weight:
            loss = loss + me_max_weight * (math.log(len(prototypes)) - mean_entropy)
        if entropy_weight:
            loss = loss + entropy_weight * entropy(log_p).mean()
    return MSNLoss(loss, chosen, cross_entropy.detach(), mean_entropy.detach(), entropy(log_targets).mean())


def entropy(log_p: Tensor) -> Tensor:
    """-sum p log p over the last dimension."""
    return -(log_p.exp() * log_p).sum(dim=-1)


def _logsumexp_of_all(log_p: Tensor) -> Tensor:
    """Log of the sum over all processes' rows: [N, K] -> [K]."""
    local = log_p.logsumexp(dim=0)
    if count_processes() == 1:
        return local
    largest = reduce_max(local)
    return reduce_sum((local - largest).exp()).log() + largest
