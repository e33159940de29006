"""The UNet decoder: order of the pixels, and what each prediction is made of."""

import pytest
import torch
from torch import Tensor, nn

from fcmae.errors import InputError
from fcmae.masking import patchify, unpatchify
from fcmae.models import UNetDecoder
from fcmae.models.unet import depth_to_space, space_to_depth
from sparse_ops import ActiveSites, SparseImage

WIDTHS, STRIDES = (3, 5, 6), (2, 4, 8)


def decoder_of(**options) -> UNetDecoder:
    torch.manual_seed(0)
    decoder = UNetDecoder(WIDTHS, STRIDES, **{"in_chans": 2, "dim": 8, "depth": 1, **options})
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder.double()


def features_of_stages(visible: Tensor) -> list[SparseImage]:
    sites = [ActiveSites.from_patches(visible, tile=4)]
    sites += [sites[0].downsample(2), sites[0].downsample(4)]
    generator = torch.Generator().manual_seed(1)
    return [
        SparseImage(torch.randn(each.num_sites, width, dtype=torch.float64, generator=generator), each)
        for each, width in zip(sites, WIDTHS, strict=True)
    ]


VISIBLE = torch.tensor([[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]]).bool()


def test_pixels_are_in_the_order_of_patches() -> None:
    image = torch.randn(2, 3, 16, 24)
    fine = patchify(image, 4).unflatten(1, (4, 6))
    assert torch.equal(depth_to_space(fine, 4), image.permute(0, 2, 3, 1))
    patches = space_to_depth(depth_to_space(fine, 4), 8)
    assert torch.equal(unpatchify(patches.flatten(1, 2), 8, grid=(2, 3)), image)


def test_without_blocks_a_prediction_is_the_sum_of_its_sites() -> None:
    """A site's own features or mask token, its place in the coarser one's, and so on."""
    decoder = decoder_of(depth=0)
    features = features_of_stages(VISIBLE)
    pred = decoder(features)
    assert pred.shape == (2, 2, 3, 8 * 8 * 2)
    image = unpatchify(pred.flatten(1, 2), 8, grid=(2, 3))  # [2, 2, 16, 24]
    for b, row, column in ((0, 0, 0), (0, 3, 5), (0, 7, 11), (1, 2, 9)):  # of the first stage's 8 x 12
        painted = torch.zeros(0, dtype=torch.float64)
        for stage, x, scale in zip(
            reversed(list(decoder.stages)), reversed(features), (4, 2, 1), strict=True
        ):
            y, z = row // scale, column // scale
            number = int(x.sites.row_of_site[b, y, z])
            own = stage.mask_token if number < 0 else stage.skip(x.features[number])
            if stage.up is not None:
                own = own + stage.up(painted).unflatten(0, (4, -1))[y % 2 * 2 + z % 2]
            painted = own
        expected = decoder.pred(painted).view(2, 2, 2).permute(2, 0, 1)
        found = image[b, :, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_stage_of_the_encoder_is_read() -> None:
    features = features_of_stages(VISIBLE)
    leaves = [x.features.requires_grad_() for x in features]
    decoder = decoder_of()
    gradients = torch.autograd.grad(decoder(features).square().sum(), [*leaves, *decoder.parameters()])
    assert all(bool(gradient.isfinite().all() and gradient.abs().max() > 0) for gradient in gradients)


def test_a_width_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="a multiple of 4 for a unet over 3 stages, got 6"):
        decoder_of(dim=6)
