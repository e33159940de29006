"""ConvMAE as a dense classifier."""

from typing import Any

from torch import Tensor, nn

from fcmae.models.convmae import ConvMAEEncoder


class ConvMAEClassifier(ConvMAEEncoder):
    """The encoder on whole images, the mean of its tokens, a norm of its own and a linear head.

    The state dict has the names of the original's fine-tuned weights. The head starts as the original's, a
    truncated normal of std 0.02 times `head_init_scale`. The positions stay fixed where the original trains
    them, at the lowest layer's rate; learnt ones that are loaded are used.

    Args:
        depths, dims: As for `ConvMAEEncoder`.
        num_classes: Outputs of the head.
        head_init_scale: Factor on the head's initial weights.
        **options: Of `ConvMAEEncoder`.
    Paper: Gao et al. 2022, ConvMAE, section 4.1.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        *,
        num_classes: int,
        head_init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(depths, dims, **options)
        del self.norm
        self.fc_norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02 * head_init_scale)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        tokens = super().forward(images)[-1]
        assert isinstance(tokens, Tensor)
        return self.head(self.fc_norm(tokens.mean(dim=(1, 2))))
