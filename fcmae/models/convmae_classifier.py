"""ConvMAE as a dense classifier."""

from typing import Any

from torch import Tensor, nn

from fcmae.models.convmae import ConvMAEEncoder

PROBE_EPS = 1e-6
"""Of the BatchNorm in front of a linear probe, as in MAE."""


class ConvMAEClassifier(ConvMAEEncoder):
    """The encoder on whole images, the mean of its tokens, a norm of its own and a linear head.

    The state dict has the names of the original's fine-tuned weights. The head starts as the original's, a
    truncated normal of std 0.02 times `head_init_scale`. The positions stay fixed where the original trains
    them, at the lowest layer's rate; learnt ones that are loaded are used.

    Args:
        depths, dims: As for `ConvMAEEncoder`.
        num_classes: Outputs of the head.
        head_init_scale: Factor on the head's initial weights.
        linear_probe: Train the head alone, behind a BatchNorm without parameters, and initialise it with std
            0.01.
        **options: Of `ConvMAEEncoder`.
    Paper: Gao et al. 2022, ConvMAE, section 4.1; the head's BatchNorm: He et al. 2021, MAE, appendix A.1.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        *,
        num_classes: int,
        head_init_scale: float = 1.0,
        linear_probe: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(depths, dims, **options)
        del self.norm
        self.fc_norm = nn.LayerNorm(dims[-1], eps=1e-6)
        head = nn.Linear(dims[-1], num_classes)
        nn.init.trunc_normal_(head.weight, std=0.01 if linear_probe else 0.02 * head_init_scale)
        nn.init.zeros_(head.bias)
        self.head: nn.Module = head
        if linear_probe:
            self.requires_grad_(False)
            norm = nn.BatchNorm1d(dims[-1], affine=False, eps=PROBE_EPS)
            self.head = nn.Sequential(norm, head.requires_grad_())

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        tokens = super().forward(images)[-1]
        assert isinstance(tokens, Tensor)
        return self.head(self.fc_norm(tokens.mean(dim=(1, 2))))
