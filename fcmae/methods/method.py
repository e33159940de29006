"""What the pretraining loop relies on in every method."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fcmae.config import DataConfig
from fcmae.data import pretrain_transform
from fcmae.masking import WHOLE, BatchPart
from fcmae.methods.output import MethodOutput
from fcmae.models import Encoder


class Method(nn.Module):
    """Base of the pretraining methods: an encoder, and a loss that needs no labels.

    The masks are drawn outside the forward pass, so that a step compiles as one graph.

    Args:
        encoder: Of `encoder_type`; what pretraining is for.
    """

    encoder_type: ClassVar[type[Encoder]] = Encoder
    """The encoders that the method can train."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_chans = encoder.in_chans

    def transform(self, data: DataConfig) -> Callable[[Tensor], Any]:
        """What makes the `images` of `forward`, one image at a time: a random crop, or several views."""
        return pretrain_transform(data)

    def draw_visible_ids(
        self, images: Tensor, generator: torch.Generator | None = None, *, part: BatchPart = WHOLE
    ) -> Tensor:
        """The masks of a batch, for `forward`; int64.

        Args:
            images: As `forward` takes them.
            generator: Source of randomness.
            part: Which images of the step's global batch these are. An image's mask depends on the
                generator's seed and its place there, however processes and micro-batches share the batch.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, *, visible_ids: Tensor) -> MethodOutput:
        """The loss of a batch under these masks."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """What follows an optimiser step, such as the average of a target network; most methods do nothing.

        Args:
            progress: Share of the schedule's steps that are done, in (0, 1].
        """
