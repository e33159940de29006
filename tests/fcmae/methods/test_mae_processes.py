"""MAE on two processes is MAE on the joined batch: loss and gradients."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fcmae
from fcmae.methods import MAE
from fcmae.training.engine.devices import LossOf

PROCESSES, IMAGES = 2, 6


def method_of() -> MAE:
    torch.manual_seed(0)
    sizes = {"depths": (2,), "dims": (16,), "num_heads": 2, "stem_stride": 8}
    decoder = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
    method = fcmae.create_method(
        "mae", backbone="vit_tiny_patch16", image_size=(32, 48), **sizes, **decoder
    ).double()
    assert isinstance(method, MAE)
    return method


def joined_batch() -> Tensor:
    return torch.randn(IMAGES, 3, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    method, images = method_of(), joined_batch()
    ids = method.draw_visible_ids(images, torch.Generator().manual_seed(2))
    part = slice(rank * IMAGES // PROCESSES, (rank + 1) * IMAGES // PROCESSES)
    joined = DistributedDataParallel(LossOf(method))  # as the loop wraps it; must outlive the backward pass
    loss, _ = joined(images[part], ids[part])
    loss.backward()
    loss = loss.detach()
    dist.all_reduce(loss)
    gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
    torch.save({"loss": loss / PROCESSES, **gradients}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_the_joined_batch(tmp_path: Path) -> None:
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=PROCESSES)
    method, images = method_of(), joined_batch()
    loss = method(images, visible_ids=method.draw_visible_ids(images, torch.Generator().manual_seed(2))).loss
    loss.backward()
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(found.pop("loss"), loss.detach(), rtol=1e-12, atol=0)
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None
            scale = float(parameter.grad.abs().max())
            assert torch.allclose(found[name], parameter.grad, rtol=1e-9, atol=1e-11 * scale), name
