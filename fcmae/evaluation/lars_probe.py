"""MAE's linear probe on features that were extracted once."""

import math

import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor, nn

from fcmae.config import ProbeConfig
from fcmae.models.convmae_classifier import PROBE_EPS


def train_lars_probe(
    features: Tensor, labels: Tensor, *, classes: int, config: ProbeConfig, seed: int, device: torch.device
) -> nn.Module:
    """BatchNorm without parameters and a linear layer, trained by LARS; in evaluation mode.

    The papers train on random crops and flips, redrawn in each epoch; here each image has one vector, of its
    centre crop. Learning rate `base_lr * batch_size / 256`, linear warm-up, then cosine to 0, set
    for every step; momentum 0.9; trust ratio 0.001 |w| / |g| for the weight and none for the bias, as
    the authors' optimiser. The last, smaller batch of an epoch is left out, as theirs.

    Args:
        features: [N, D].
        labels: int64 [N].
        classes: Outputs.
        config: Its epochs, batch size, rates.
        seed: Of the initial weights and of the order.
        device: To train on.
    Paper: He et al. 2021, MAE, appendix A.1; Gao et al. 2022, ConvMAE, section 4.1.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(features.shape[1], classes)
    nn.init.trunc_normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    probe = nn.Sequential(nn.BatchNorm1d(features.shape[1], affine=False, eps=PROBE_EPS), head).to(device)
    optimiser = Lars(
        [{"params": [head.weight], "always_adapt": True}, {"params": [head.bias], "weight_decay": 0.0}],
        momentum=0.9,  # pyright: ignore[reportArgumentType]
        weight_decay=config.weight_decay,  # pyright: ignore[reportArgumentType]
        trust_coeff=0.001,
    )
    batch_size = min(config.batch_size, len(features))
    steps = len(features) // batch_size
    peak = config.base_lr * batch_size / 256
    probe.train()
    for epoch in range(config.epochs):
        order = torch.randperm(len(features), generator=generator)
        for step in range(steps):
            rate = peak * _share(epoch + step / steps, config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            chosen = order[step * batch_size : (step + 1) * batch_size]
            logits = probe(features[chosen].to(device))
            optimiser.zero_grad()
            F.cross_entropy(logits, labels[chosen].to(device)).backward()
            optimiser.step()
    return probe.eval()


def _share(epoch: float, config: ProbeConfig) -> float:
    """Of the peak learning rate, at a fractional epoch."""
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    done = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def lars_probe_accuracy(
    features: Tensor,
    labels: Tensor,
    train_features: Tensor,
    train_labels: Tensor,
    *,
    config: ProbeConfig,
    seed: int,
    device: torch.device,
) -> float:
    """Accuracy of `train_lars_probe`; arguments as there and for `probe_accuracy`."""
    classes = int(torch.cat([labels, train_labels]).max()) + 1
    with torch.enable_grad():
        probe = train_lars_probe(
            train_features, train_labels, classes=classes, config=config, seed=seed, device=device
        )
    found = [probe(part.to(device)).argmax(dim=1).cpu() for part in features.split(16384)]
    return (torch.cat(found) == labels).double().mean().item()
