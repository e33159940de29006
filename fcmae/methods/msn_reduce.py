"""Sums over all processes of a run, with gradients; without a process group, the values themselves."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count_processes() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over the processes.

    Its gradient is the sum of the processes' gradients. DDP then averages over the processes, so a term that
    every process computes from the sum has the gradient of the joined batch.
    """
    return x if count_processes() == 1 else _Sum.apply(x)


def reduce_max(x: Tensor) -> Tensor:
    """The largest `x` of the processes, without a gradient."""
    largest = x.detach().clone()
    if count_processes() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
