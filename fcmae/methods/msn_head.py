"""MSN's projection head."""

import torch
from torch import Tensor, nn

from fcmae.methods.msn_reduce import count_processes, reduce_sum
from fcmae.models.convnextv2 import init_weights


class JoinedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm whose statistics in training are those of the batches of all processes together.

    torch.nn.SyncBatchNorm does this on a GPU only. At least float32, whatever the autocast.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C] to [N, C]; every process holds equally many rows."""
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(self.weight.dtype)
            if not self.training or count_processes() == 1:
                return super().forward(x)
            count = len(x) * count_processes()
            mean = reduce_sum(x.sum(dim=0)) / count
            variance = reduce_sum((x - mean).square().sum(dim=0)) / count
            with torch.no_grad():
                assert self.running_mean is not None and self.running_var is not None
                assert self.num_batches_tracked is not None and self.momentum is not None
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class ProjectionHead(nn.Sequential):
    """Three linear layers with BatchNorm and GELU between them, as in the original.

    Args:
        in_channels: Width of the encoder's vectors.
        hidden_channels: Width between the layers (the paper: 2048).
        out_channels: Width of what is compared with the prototypes (the paper: 256).
        norm: Begin with a LayerNorm. A ConvNet's last norm stands between pooling and its classifier and is
            no part of the encoder; without one, the scale of the residual stream, which differs between
            images and grows with depth, would reach the head. ViT's and ConvMAE's vectors come normed.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, *, norm: bool) -> None:
        super().__init__()
        if norm:
            self.norm = nn.LayerNorm(in_channels, eps=1e-6)
        self.fc1 = nn.Linear(in_channels, hidden_channels)
        self.bn1 = JoinedBatchNorm1d(hidden_channels)
        self.act1 = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, hidden_channels)
        self.bn2 = JoinedBatchNorm1d(hidden_channels)
        self.act2 = nn.GELU()
        self.fc3 = nn.Linear(hidden_channels, out_channels)
        self.apply(init_weights)
