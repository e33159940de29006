"""Pictures of what a masked-image method predicts: original, visible, reconstructed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from fcmae.masking import patch_grid, patchify, unpatchify
from fcmae.methods.losses import patch_statistics

MASKED_GREY = 0.55
"""Shade of hidden patches in [0, 1]: neither black nor white, which images of their own often have."""


class ReconstructionOutput(Protocol):
    """What a method's forward pass gives: at least the predicted patches, [B, L, patch_size**2 * C]."""

    pred: Tensor


class ReconstructionMethod(Protocol):
    """A pretraining method that predicts pixels, such as FCMAE."""

    patch_size: int
    norm_pix_loss: bool

    def __call__(self, images: Tensor, visible: Tensor | None = None) -> ReconstructionOutput: ...


def pixels_of(visible: Tensor, patch_size: int) -> Tensor:
    """Return the pixels of the visible patches: bool [B, Gh, Gw] -> bool [B, 1, H, W]."""
    return visible.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2).unsqueeze(1)


def reconstruct(method: ReconstructionMethod, images: Tensor, visible: Tensor) -> Tensor:
    """Return the images with their masked patches predicted and their visible patches as they are.

    With `norm_pix_loss` a prediction is the patch minus its mean over its standard deviation, so it is
    read back with the mean and the standard deviation of the *target* patch: `pred * sqrt(var + 1e-6) +
    mean`, `var` unbiased, the inverse of the training target. The picture thus shows structure, and takes the
    brightness and the contrast of each masked patch from the image. Visible patches are not trained on, so
    they are pasted. The method runs in evaluation mode, without gradients, and gets its mode back.

    Args:
        method: The pretraining method; `.patch_size`, `.norm_pix_loss` and `.pred` of its output are used.
        images: Normalised as in training, [B, C, H, W], floating.
        visible: Patches, or finer cells, that the encoder sees, bool [B, Gh, Gw].
    Returns:
        [B, C, H, W], normalised like `images` and of their dtype.
    Paper: He et al. 2021, Masked Autoencoders, section 3 (reconstruction target).
    """
    target = patchify(images, method.patch_size)  # [B, L, patch_size**2 * C]
    pred = _predict(method, images, visible).to(target.dtype)
    if method.norm_pix_loss:
        mean, std = patch_statistics(target)
        pred = pred * std + mean
    grid = patch_grid((images.shape[2], images.shape[3]), method.patch_size)
    predicted = unpatchify(pred, method.patch_size, grid=grid)
    return torch.where(pixels_of(visible, images.shape[2] // visible.shape[1]), images, predicted)


def _predict(method: ReconstructionMethod, images: Tensor, visible: Tensor) -> Tensor:
    module = method if isinstance(method, nn.Module) else None
    training = module is not None and module.training
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            return method(images, visible=visible).pred
    finally:
        if module is not None:
            module.train(training)


def displayable(images: Tensor) -> Tensor:
    """Return images in [0, 1] as pictures, uint8 [B, H, W, 3]: three channels, or the first as grey."""
    channels = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels = (channels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu()


def hide_masked(images: Tensor, visible: Tensor, patch_size: int) -> Tensor:
    """Return images in [0, 1], [B, C, H, W], with their masked patches painted grey."""
    grey = torch.full_like(images, MASKED_GREY)
    return torch.where(pixels_of(visible, patch_size), images, grey)


GAP = 2
"""White pixels between the pictures of a sheet."""


def sheet(rows: Sequence[Tensor]) -> Tensor:
    """Rows of pictures, each uint8 [B, H, W, 3], as one picture with their very pixels."""
    padded = [F.pad(row, (0, 0, 0, GAP, 0, GAP), value=255) for row in rows]
    lines = [torch.cat(list(row), dim=1) for row in padded]
    return torch.cat(lines)[:-GAP, :-GAP].contiguous()


def rows_of(sheet: Tensor, *, rows: int, count: int) -> list[Tensor]:
    """The rows of `count` pictures that a sheet was made of, uint8 [count, H, W, 3] each."""
    padded = F.pad(sheet, (0, 0, 0, GAP, 0, GAP))
    return [
        torch.stack([picture[:-GAP, :-GAP] for picture in line.chunk(count, dim=1)])
        for line in padded.chunk(rows)
    ]


def save_rows(path: Path, rows: Sequence[tuple[str, Tensor]], *, titles: Sequence[str] | None = None) -> None:
    """Write a figure of labelled rows of pictures as PNG.

    Args:
        path: The file; its folder is made where it is missing.
        rows: (label, pictures) from top to bottom; pictures are uint8 [B, H, W, 3] of the same B.
        titles: A caption per column, such as the image's name; shortened to fit.
    """
    count, height, width, _ = rows[0][1].shape
    size = (1.5 * count * width / height + 0.4, 1.5 * len(rows) + 0.3)  # inches
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, pictures) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, fontsize=9)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], titles or (), strict=False):
        axis.set_title(title if len(title) <= 18 else "…" + title[-17:], fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
