"""MSN on two processes is MSN on the joined batch: loss, gradients and BatchNorm's statistics."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import fcmae
from fcmae.data import Views
from fcmae.methods import MSN
from fcmae.methods.msn_loss import sinkhorn

PROCESSES, IMAGES = 2, 8


class LossOf(nn.Module):
    """As the training loop's, without the import of the loop in every process."""

    def __init__(self, method: MSN) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Views, visible_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.method(images, visible_ids=visible_ids)
        return out.loss, out.logs


def method_of() -> MSN:
    torch.manual_seed(0)
    method = fcmae.create_method(
        "msn",
        backbone="convnextv2_atto",
        depths=(1, 1, 1, 1),
        dims=(8, 8, 16, 16),
        image_size=64,
        focal_size=32,
        mask_ratio=0.5,
        prototypes=12,
        hidden_dim=16,
        output_dim=8,
        sinkhorn_iterations=3,
        me_max_weight=5.0,
        entropy_weight=0.5,
    ).double()
    assert isinstance(method, MSN)
    return method


def joined_batch() -> Views:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return Views(draw(IMAGES, 3, 64, 64), draw(IMAGES, 1, 3, 64, 64), draw(IMAGES, 2, 3, 32, 32))


def outcome(method: MSN, loss: Tensor, logs: dict[str, Tensor]) -> dict[str, Any]:
    loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    buffers = {name: value for name, value in method.named_buffers() if "running" in name}
    return {"loss": loss.detach(), "logs": logs, **gradients, **buffers}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    method, images = method_of(), joined_batch()
    ids = method.draw_visible_ids(images, torch.Generator().manual_seed(2))
    part = slice(rank * IMAGES // PROCESSES, (rank + 1) * IMAGES // PROCESSES)
    parallel = DistributedDataParallel(LossOf(method))
    loss, logs = parallel(Views(*(view[part] for view in images)), ids[part])
    found = outcome(method, loss, logs)
    dist.all_reduce(found["loss"])
    found["loss"] /= PROCESSES
    log_p = balanced_inputs().chunk(PROCESSES)[rank]
    torch.save({**found, "sinkhorn": sinkhorn(log_p, iterations=3)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def balanced_inputs() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(10, 4, dtype=torch.float64, generator=generator).mul(3).log_softmax(dim=1)


def test_two_processes_are_the_joined_batch(tmp_path: Path):
    spawn(one_of_two, args=(str(tmp_path),), nprocs=PROCESSES)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    method, images = method_of(), joined_batch()
    ids = method.draw_visible_ids(images, torch.Generator().manual_seed(2))
    whole = outcome(method, *LossOf(method)(images, ids))
    logs = whole.pop("logs")
    largest = max(value.abs().max() for value in whole.values())
    for half in halves:
        assert half.keys() - {"sinkhorn", "logs"} == whole.keys()
        for name, value in whole.items():
            error = (half[name] - value).abs().max()
            # Different orders of summation: a few hundred roundings of float64.
            assert error <= 1e-13 * largest, name
        for name in ("mean_entropy", "prototypes_in_use", "prototype_share"):
            torch.testing.assert_close(half["logs"][name], logs[name])
    balanced = sinkhorn(balanced_inputs(), iterations=3)
    torch.testing.assert_close(torch.cat([half["sinkhorn"] for half in halves]), balanced)
