"""Models too large for one device: FSDP2 and activation checkpointing, block by block."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import checkpoint
from torch.utils._pytree import SUPPORTED_NODES, register_pytree_node

from sparse_ops import SparseImage

# stages.0.blocks.1, blocks3.0, decoder_blocks.7: of our encoders and decoders, and of timm's ConvNeXt.
_BLOCK = re.compile(r"(.*\.)?(decoder_)?blocks\d?\.\d+")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of encoders, decoders and classifiers, from the image on."""
    return [module for name, module in model.named_modules() if _BLOCK.fullmatch(name)]


def checkpoint_activations(model: nn.Module) -> None:
    """Let each block keep its input only, and run again in the backward pass with the same random draws."""
    for block in blocks_of(model):
        # The instance's own forward: wrapping the module would change its parameters' names.
        block.forward = partial(checkpoint.checkpoint, block.forward, use_reentrant=False)


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Share out weights, gradients and optimiser state over the processes; each block is gathered to be used.

    Args:
        model: Holds its whole weights in every process; returned with a DTensor for each.
        mesh: Fabric's, of dimension "data_parallel".
    """
    # FSDP hooks onto the tensors that go through a block; in a SparseImage it has to be told where they are.
    if SparseImage not in SUPPORTED_NODES:
        register_pytree_node(
            SparseImage,
            lambda image: ([image.features], image.sites),
            lambda features, sites: SparseImage(next(iter(features)), sites),
        )
    processes = mesh["data_parallel"]
    for block in blocks_of(model):
        fully_shard(block, mesh=processes)
    fully_shard(model, mesh=processes)
    return model


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which each process may hold a part; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like_parameter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, of a parameter's shape or a scalar, shared out as the parameter is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def gather_state(state: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """A nested state dict with whole tensors; of those that were shared out, copies on the CPU.

    One tensor at a time, so that no device ever holds more than one of them whole.

    Args:
        state: Every process must call with its own.
        keep: Whether this process wants the result; the others' is without the tensors shared out.
    """
    gathered = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            gathered[name] = gather_state(value, keep=keep)
        elif not isinstance(value, DTensor):
            gathered[name] = value
        else:
            tensor = value.full_tensor()
            if keep:
                gathered[name] = tensor.cpu()
    return gathered


def first_non_finite_name(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite, or None; waits for the device.

    Every process must call it: each looks at its own parts.
    """
    parts = [value.to_local() if isinstance(value, DTensor) else value for value in tensors.values()]
    finite = torch.stack([part.detach().isfinite().all() for part in parts]).int()
    if any(isinstance(value, DTensor) for value in tensors.values()):
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return None if finite.all() else list(tensors)[int(finite.argmin())]
