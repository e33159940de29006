"""The same question to every method that paints masked patches: can it learn one batch by heart?"""

import torch
from torch import nn


def assert_overfits(
    method: nn.Module, *, grid: tuple[int, int], patch_size: int, steps: int = 20, lr: float = 1e-2
) -> None:
    """A few steps on two images halve the loss.

    Args:
        method: A masked autoencoder at its first weights.
        grid: Patches of the images, (Gh, Gw); every second one of every second row is visible.
        patch_size: In pixels. A patch is of one colour under a ramp across the image.
        steps: Of AdamW.
        lr: Its learning rate.
    """
    images = torch.randn(2, 3, *grid).repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    images = images * torch.linspace(-1, 1, grid[1] * patch_size)
    visible = torch.zeros(2, *grid, dtype=torch.bool)
    visible[:, ::2, ::2] = True
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        loss = method(images, visible=visible).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
