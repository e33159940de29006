"""How well a classifier does on images it was not trained on."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from fcmae.data import Batch


@torch.no_grad()
def evaluate(
    fabric: Fabric, model: nn.Module, batches: Iterable[Batch], *, calls: int, image: Tensor
) -> dict[str, float]:
    """{"accuracy": share of images whose largest output is their class, "loss": mean cross entropy}.

    Every process calls it with its share of the images, and all get the numbers of the whole. Runs at the
    run's precision; the model's mode is put back.

    Args:
        fabric: The run's Fabric.
        model: Images [B, C, H, W] to logits [B, classes]; under DDP not wrapped.
        batches: Labelled.
        calls: Of the model, the same in every process and no fewer than batches: where weights are shared
            out, a call needs all processes.
        image: [1, C, H, W]; what the model sees once there are no more batches.
    """
    was_training = model.training
    model.eval()
    # Summed on the device: nothing waits for it before the last batch.
    correct = torch.zeros((), dtype=torch.int64, device=fabric.device)
    loss = torch.zeros((), device=fabric.device)
    count = torch.zeros((), dtype=torch.int64, device=fabric.device)
    image = image.to(fabric.device)
    for batch in batches:
        assert batch.labels is not None
        images = batch.images.to(fabric.device, non_blocking=True)
        labels = batch.labels.to(fabric.device, non_blocking=True)
        with fabric.autocast():
            logits = model(images)
        correct += (logits.argmax(dim=1) == labels).sum()
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        count += len(labels)
        calls -= 1
    for _ in range(calls):
        with fabric.autocast():
            model(image)
    model.train(was_training)
    if fabric.world_size > 1:
        for value in (correct, loss, count):
            fabric.all_reduce(value, reduce_op="sum")  # in place
    return {"accuracy": correct.item() / count.item(), "loss": loss.item() / count.item()}


def with_best(metrics: dict[str, float], previous: dict[str, float], *, step: int) -> dict[str, float]:
    """`metrics` with the best accuracies so far, "best_<name>" and "best_<name>_step", the earlier of equals.

    Args:
        metrics: Of this evaluation.
        previous: What this function returned at the one before; empty at the first.
        step: Of this evaluation.
    """
    best = {name: value for name, value in previous.items() if name.startswith("best_")}
    for name, value in metrics.items():
        if name.endswith("accuracy") and value > best.get(f"best_{name}", -1.0):
            best |= {f"best_{name}": value, f"best_{name}_step": step}
    return {**metrics, **best}
