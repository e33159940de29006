"""What a method returns for a batch."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MethodOutput:
    """The loss of one batch.

    Attributes:
        loss: Scalar to minimise.
        logs: Further scalars worth a line in the log, detached.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reconstruction(MethodOutput):
    """Loss and prediction of one batch, of the methods that paint masked patches.

    Attributes:
        pred: Predicted patches, [B, L, patch_size**2 * in_chans], pixels ordered (y, x, channel).
        visible: Which patches the encoder saw, bool [B, Gh, Gw].
    """

    pred: Tensor
    visible: Tensor
