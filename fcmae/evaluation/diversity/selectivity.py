"""How much single channels tell classes apart."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fcmae.errors import InputError
from fcmae.evaluation.diversity.hooks import observed


def class_selectivity(means: Tensor) -> Tensor:
    """`(m_max - m_rest) / (|m_max| + |m_rest|)` of each channel, in [0, 1].

    m_max is the largest of the class means, m_rest the mean of the others'. 0: all classes excite the channel
    alike; 1: only one does. The absolute values change nothing for activations that are nowhere
    negative, as in the paper; those of GELU are a little, and with m_max > 0 > m_rest the index is 1.

    Args:
        means: Mean activation of each class, [classes, C], at least two classes.
    Returns:
        [C]; 0 where both means are 0.
    Paper: Morcos et al. 2018, On the importance of single directions, section 3.2; Woo et al. 2023,
        ConvNeXt V2, appendix C.
    """
    largest = means.max(dim=0).values
    rest = (means.sum(dim=0) - largest) / (len(means) - 1)
    scale = largest.abs() + rest.abs()
    return torch.where(scale > 0, (largest - rest) / scale, torch.zeros_like(scale))


@torch.no_grad()
def measure_selectivity(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    modules: str,
    prefix_tokens: int = 0,
) -> dict[str, Tensor]:
    """`class_selectivity` of every channel that each matching module reads; a channel's activation in an
    image is its mean over the sites.

    Memory beside the network: 8 bytes a class and channel; 1000 classes and the 72192 channels of
    ConvNeXt V2-Base: 0.58 GB. The number of images changes nothing.

    Args:
        model: Takes images [B, C, H, W]; run in evaluation mode, which is put back.
        batches: (images, labels int64 [B]), on the model's device. Every class must occur.
        classes: How many.
        modules: Regular expression that whole names of modules match.
        prefix_tokens: Tokens before the patches, which are no sites.
    Returns:
        Module name -> [C], float64, on the CPU, in the order in which they ran.
    Raises:
        InputError: a class without images, or fewer than two; or see `observed`.
    """
    counts = torch.zeros(classes, dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    labels = torch.empty(0, dtype=torch.int64)

    def receive(name: str, features: Tensor) -> None:
        means = features.flatten(1, -2).double().mean(dim=1).cpu()  # [B, C]
        if name not in sums:
            sums[name] = means.new_zeros(classes, means.shape[1])
        sums[name].index_add_(0, labels, means)

    with observed(model, modules, receive, prefix_tokens=prefix_tokens):
        for images, labels in batches:
            labels = labels.cpu()  # read by `receive`
            counts += labels.bincount(minlength=classes)
            model(images)
    if classes < 2 or bool((counts == 0).any()):
        found = int((counts > 0).sum())
        raise InputError(
            f"selectivity: expected images of each of at least 2 classes, got {found} of {classes} classes. "
            "Raise --images."
        )
    return {name: class_selectivity(total / counts[:, None]) for name, total in sums.items()}
