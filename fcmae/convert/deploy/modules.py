"""Dense models made ready for deployment: nothing random, and GRN that does not overflow in float16."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn


class Fp16SafeGrn(nn.Module):
    """timm's GRN whose statistics are float32 whatever the features are.

    A map's norm leaves float16's range (65 504) long before its features do: 56 x 56 sites of 1 200 suffice.

    Args:
        grn: The layer whose parameters it shares.
    """

    def __init__(self, grn: GlobalResponseNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = grn.weight, grn.bias, grn.eps
        self.spatial_dim, self.channel_dim, self.shape = grn.spatial_dim, grn.channel_dim, grn.wb_shape

    def forward(self, x: Tensor) -> Tensor:
        """x + bias + weight * x * (norm over sites / its mean over channels)."""
        norms = x.float().square().sum(self.spatial_dim, keepdim=True).sqrt()
        ratios = norms / (norms.mean(self.channel_dim, keepdim=True) + self.eps)
        scaled = x.float() * ratios * self.weight.float().view(self.shape)
        return (x.float() + scaled + self.bias.float().view(self.shape)).to(x.dtype)


def make_grn_fp16_safe(model: nn.Module) -> int:
    """Replace every GRN of a timm model by one with float32 statistics, in place; how many there were."""
    return _replace(model, GlobalResponseNorm, Fp16SafeGrn)


def remove_drop_path(model: nn.Module) -> int:
    """Remove stochastic depth from a timm model, in place; how many layers there were.

    In evaluation mode it does nothing anyway; without it, training mode computes the same.
    """
    return _replace(model, DropPath, lambda _: nn.Identity())


def is_deterministic(model: nn.Module, images: Tensor) -> bool:
    """Whether a model computes the same in training mode as in evaluation mode, bit for bit."""
    was = model.training
    with torch.no_grad():
        outputs = [model.train(mode)(images) for mode in (False, True, True)]
    model.train(was)
    return all(torch.equal(outputs[0], output) for output in outputs[1:])


def _replace(model: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> int:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
    for name, module in found:
        model.set_submodule(name, by(module))
    return len(found)
