"""Proof by running: what is compared, and how far apart it may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fcmae.errors import InputError

BOUND = 1e-4
"""Largest difference of a feature that is allowed, as a share of the root mean square of its stage. Summing
float32 in another order gives some 1e-6."""


@dataclass(frozen=True, kw_only=True)
class StageDifference:
    """How far two executions of one stage are apart."""

    comparison: str
    stage: str
    """`stage 0` to `stage 3`, or `logits`."""
    absolute: float
    """Largest absolute difference of a feature."""
    scale: float
    """Root mean square of the stage's features."""

    @property
    def relative(self) -> float:
        """The difference as a share of the scale; 0 where both are 0."""
        return self.absolute / self.scale if self.scale else self.absolute

    def line(self) -> str:
        """One row of the printed table."""
        return (
            f"verify   {self.comparison}, {self.stage}: largest difference {self.absolute:.1e}, "
            f"{self.relative:.1e} of the root mean square"
        )


def check_differences(differences: list[StageDifference], *, bound: float = BOUND) -> None:
    """Raise InputError, naming the worst stage, unless every difference is at most `bound` of its scale."""
    failed = [found for found in differences if not found.relative <= bound]  # NaN fails too
    if failed:
        worst = max(failed, key=lambda found: found.relative)
        raise InputError(
            f"verify: expected differences of at most {bound:.0e} of the root mean square, "
            f"got {worst.relative:.1e} ({worst.comparison}, {worst.stage}). "
            "The conversion is wrong or the weights overflow: nothing was written."
        )


def differences(comparison: str, ours: Mapping[str, Tensor], theirs: list[Tensor]) -> list[StageDifference]:
    """One entry for each of our stages, by name, and theirs in the same order."""
    return [
        StageDifference(
            comparison=comparison,
            stage=stage,
            absolute=(a - b).abs().max().item(),
            scale=b.square().mean().sqrt().item(),
        )
        for (stage, a), b in zip(ours.items(), theirs, strict=True)
    ]


def filled(build: Callable[[], nn.Module], weights: Mapping[str, Tensor]) -> nn.Module:
    """A module in evaluation mode whose parameters are `weights` in float32, shared where they are that.

    Args:
        build: Makes the module; it is called on the meta device.
        weights: Name -> tensor, in any shape of the same numbers. Parameters that are not among them become
            zero.
    """
    with torch.device("meta"):
        module = build()
    module.load_state_dict(
        {
            name: weights[name].float().reshape(tensor.shape)
            if name in weights
            else torch.zeros(tensor.shape)
            for name, tensor in module.state_dict().items()
        },
        assign=True,
    )
    return module.eval()
