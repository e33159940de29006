"""The papers' linear probe: BatchNorm and a linear layer on frozen features, by LARS."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor, nn

from fcmae.config import DataConfig, ProbeConfig
from fcmae.data import finetune_transform, training_batches
from fcmae.evaluation.features import Numbered, Split
from fcmae.evaluation.frozen.knn import embed_images
from fcmae.models import Encoder

EPS = 1e-6
"""Of the BatchNorm, as in MAE and ConvMAE."""


class Length(NamedTuple):
    """How many images a step learns from, and how many steps make an epoch; the rest is left out."""

    batch_size: int
    steps: int


def length_of(images: int, config: ProbeConfig) -> Length:
    """Of so many training images, at most all in a batch."""
    batch_size = min(config.batch_size, images)
    return Length(batch_size, images // batch_size)


def cached_batches(
    features: Tensor, labels: Tensor, *, length: Length, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled passes over features that were extracted once; (features, labels) of each step."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(features), generator=generator)
        for chosen in order.split(length.batch_size)[: length.steps]:
            yield features[chosen], labels[chosen]


def cropped_batches(
    encoder: Encoder,
    split: Split,
    labels: Tensor,
    data: DataConfig,
    *,
    length: Length,
    epochs: int,
    at_once: int,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of random crops and flips, drawn anew in each pass, as the papers train their probes.

    Args:
        encoder: Frozen, in evaluation mode, on its device.
        split: The training images.
        labels: int64 [N], of every image of the split.
        data: Crops, flips, normalisation and loading.
        length: Images of a step, steps of an epoch.
        epochs: Of the whole training.
        at_once: Images that the encoder sees at once.
        seed: Of order and crops.
    """
    batches = training_batches(
        Numbered(split.dataset),
        finetune_transform(data, rand_augment=None, random_erasing=0.0),
        batch_size=at_once,
        seed=seed,
        stop=math.ceil(epochs * length.steps * length.batch_size / at_once),
        workers=data.workers,
        timeout=data.timeout,
        device=next(encoder.parameters()).device,
    )
    held = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for batch in batches:
        features, numbers = embed_images(encoder, [batch])
        found = features, labels[numbers]
        held = tuple(torch.cat([old, new]) if len(old) else new for old, new in zip(held, found, strict=True))
        while len(held[0]) >= length.batch_size:
            yield held[0][: length.batch_size], held[1][: length.batch_size]
            held = held[0][length.batch_size :], held[1][length.batch_size :]


def train_lars_probe(
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    width: int,
    classes: int,
    length: Length,
    config: ProbeConfig,
    seed: int,
    device: torch.device,
) -> nn.Module:
    """BatchNorm without parameters and a linear layer, trained by LARS; in evaluation mode.

    Learning rate `base_lr * batch_size / 256`, linear warm-up, then cosine to 0, set for every step; momentum
    0.9; trust ratio 0.001 |w| / |g| for the weight and none for the bias, as the authors' optimiser. The
    last, smaller batch of an epoch is left out, as theirs.

    Args:
        batches: (features [B, D], labels int64 [B]) of each step.
        width: Of the features, D.
        classes: Outputs.
        length: Images of a step, steps of an epoch.
        config: Epochs and rates.
        seed: Of the initial weights.
        device: To train on.
    Paper: He et al. 2021, MAE, appendix A.1; Gao et al. 2022, ConvMAE, section 4.1.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    probe = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=EPS), head).to(device)
    optimiser = Lars(
        [{"params": [head.weight], "always_adapt": True}, {"params": [head.bias], "weight_decay": 0.0}],
        momentum=0.9,  # pyright: ignore[reportArgumentType]
        weight_decay=config.weight_decay,  # pyright: ignore[reportArgumentType]
        trust_coeff=0.001,
    )
    peak = config.base_lr * length.batch_size / 256
    probe.train()
    for epoch in range(config.epochs):
        for step in range(length.steps):
            rate = peak * _share(epoch + step / length.steps, config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            features, labels = next(batches)
            loss = F.cross_entropy(probe(features.to(device)), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return probe.eval()


def _share(epoch: float, config: ProbeConfig) -> float:
    """Of the peak learning rate, at a fractional epoch."""
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    done = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def probe_hits(probe: nn.Module, features: Tensor, labels: Tensor, *, device: torch.device) -> float:
    """Share of the features [N, D] whose label the probe tells."""
    found = [probe(part.to(device)).argmax(dim=1).cpu() for part in features.split(16384)]
    return (torch.cat(found) == labels).double().mean().item()
