"""The reconstruction loss that FCMAE, ConvMAE and MAE share."""

import torch
from torch import Tensor

PATCH_EPS = 1e-6
"""Added to a patch's variance before the square root, as in MAE."""


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, [B, L, 1] each: unbiased variance, `sqrt(var + 1e-6)` as in
    MAE.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + PATCH_EPS).sqrt()


def reconstruction_loss(pred: Tensor, patches: Tensor, masked: Tensor, *, norm_pix_loss: bool) -> Tensor:
    """Mean squared error of the masked patches, in float32 at least.

    Args:
        pred: Predicted patches, [B, L, D].
        patches: True patches, [B, L, D].
        masked: bool [B, L], or [B, L, D] where patches are hidden in part; True = removed.
        norm_pix_loss: Normalise each true patch by its own mean and standard deviation first.
    Returns:
        Scalar: the mean over the masked pixels of the batch, which for whole patches is the paper's mean over
        D, then over the masked patches.
    Paper: He et al. 2021, MAE, section 3.
    """
    target = patches.to(torch.promote_types(patches.dtype, torch.float32))
    if norm_pix_loss:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    error = (pred.to(target.dtype) - target).square()
    if masked.ndim == 2:
        error = error.mean(dim=-1)
    return (error * masked).sum() / masked.sum()
