"""Reconstructions: what is pasted, what is predicted, and how a prediction becomes pixels again."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fcmae
from fcmae.masking import patchify
from fcmae.methods.losses import patch_statistics
from fcmae.report import reconstruct
from fcmae.report.reconstruction import MASKED_GREY, displayable, hide_masked, pixels_of, save_rows

PATCH = 4
GRID = (2, 3)


class Oracle(nn.Module):
    """Predicts each patch's training target exactly, plus `error`."""

    def __init__(self, *, norm_pix_loss: bool, error: float = 0.0) -> None:
        super().__init__()
        self.patch_size, self.norm_pix_loss, self.error = PATCH, norm_pix_loss, error
        self.modes: list[bool] = []

    def forward(self, images: Tensor, visible: Tensor | None = None) -> SimpleNamespace:
        self.modes.append(self.training)
        target = patchify(images, self.patch_size)
        if self.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        return SimpleNamespace(pred=target + self.error)


def draw(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, channels, GRID[0] * PATCH, GRID[1] * PATCH, generator=generator)
    visible = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[0, 1, 0], [1, 0, 0]]], dtype=torch.bool)
    return images, visible


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_gives_the_image_back(norm_pix_loss: bool, channels: int) -> None:
    images, visible = draw(channels)
    result = reconstruct(Oracle(norm_pix_loss=norm_pix_loss), images, visible)
    torch.testing.assert_close(result, images, atol=1e-5, rtol=0)


def test_visible_pixels_are_pasted_and_masked_ones_predicted() -> None:
    images, visible = draw(3)
    result = reconstruct(Oracle(norm_pix_loss=False, error=1.0), images, visible)
    seen = pixels_of(visible, PATCH).expand_as(images)
    assert torch.equal(result[seen], images[seen])
    torch.testing.assert_close(result[~seen], images[~seen] + 1.0)


def test_an_error_is_scaled_by_the_target_patch() -> None:
    images, visible = draw(1)
    result = reconstruct(Oracle(norm_pix_loss=True, error=1.0), images, torch.zeros_like(visible))
    patches = patchify(images, PATCH)
    expected = torch.sqrt(patches.var(dim=-1, unbiased=True, keepdim=True) + 1e-6).expand_as(patches)
    torch.testing.assert_close(patchify(result, PATCH) - patches, expected, atol=1e-5, rtol=1e-5)


def test_a_constant_patch_stays_finite() -> None:
    images, visible = torch.full((1, 1, PATCH, PATCH), 0.25), torch.zeros(1, 1, 1, dtype=torch.bool)
    result = reconstruct(Oracle(norm_pix_loss=True, error=1.0), images, visible)
    torch.testing.assert_close(result, images + 1e-3)  # sqrt(0 + 1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_method_runs_in_evaluation_mode_and_gets_its_mode_back(training: bool) -> None:
    method = Oracle(norm_pix_loss=True).train(training)
    result = reconstruct(method, *draw(3))
    assert method.modes == [False]
    assert method.training is training
    assert not result.requires_grad


def test_fcmae_reconstructs_images_that_are_not_square() -> None:
    method = fcmae.create_method(
        "fcmae",
        backbone="convnextv2_atto",
        image_size=(64, 96),
        in_chans=2,
        decoder_dim=8,
        depths=(1, 1, 1, 1),
        dims=(4, 8, 8, 8),
    )
    images = torch.randn(2, 2, 64, 96, generator=torch.Generator().manual_seed(0))
    visible = draw(2)[1]
    result = reconstruct(method, images, visible)
    seen = pixels_of(visible, 32).expand_as(images)
    assert torch.equal(result[seen], images[seen])
    assert torch.isfinite(result).all() and not torch.equal(result[~seen], images[~seen])


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (5, (0, 1, 2))]
)
def test_pictures_show_three_channels_or_grey(channels: int, shown: tuple[int, ...]) -> None:
    images = torch.linspace(-0.2, 1.2, 2 * channels * 6).view(2, channels, 2, 3)
    pictures = displayable(images)
    expected = (images[:, list(shown)].clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(pictures, expected)


def test_hidden_patches_are_grey_and_the_others_untouched() -> None:
    images, visible = draw(3)
    hidden = hide_masked(images, visible, PATCH)
    seen = pixels_of(visible, PATCH).expand_as(images)
    assert torch.equal(hidden[seen], images[seen])
    assert (hidden[~seen] == MASKED_GREY).all()


def test_rows_are_saved_as_one_png(tmp_path) -> None:
    pictures = torch.zeros(3, 8, 16, 3, dtype=torch.uint8)
    file = tmp_path / "new" / "rows.png"
    save_rows(file, [("original", pictures), ("visible", pictures)], titles=["a", "b" * 40, "c"])
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.width > 2 * image.height  # three pictures of 2:1 beside each other, two rows
