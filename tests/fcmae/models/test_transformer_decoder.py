"""MAE's decoder: names, order of the sites, with and without a class token."""

import torch
from torch import Tensor, nn

from fcmae.models import TransformerDecoder
from fcmae.models.position import sincos_positions
from sparse_ops import ActiveSites, SparseImage


def decoder_of(**options) -> TransformerDecoder:
    torch.manual_seed(0)
    decoder = TransformerDecoder(6, 5, **{"grid": (2, 3), "dim": 8, "depth": 1, "num_heads": 2, **options})
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder.double()


def visible_features(visible: Tensor) -> SparseImage:
    sites = ActiveSites.from_patches(visible, tile=1)
    return SparseImage(torch.randn(sites.num_sites, 6, dtype=torch.float64), sites)


def test_names_are_maes() -> None:
    block = {f"{part}.{kind}" for kind in ("weight", "bias") for part in
             ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}  # fmt: skip
    expected = {"mask_token", "decoder_pos_embed"}
    expected |= {
        f"decoder_{part}.{kind}" for part in ("embed", "norm", "pred") for kind in ("weight", "bias")
    }
    expected |= {f"decoder_blocks.{number}.{name}" for number in range(2) for name in block}
    state = decoder_of(depth=2).state_dict()
    assert state.keys() == expected
    assert state["mask_token"].shape == (1, 1, 8) and state["decoder_pos_embed"].shape == (1, 7, 8)


def test_every_site_has_its_token_and_its_position() -> None:
    """Without blocks a site's prediction is its own: the token or the mask token, plus the position."""
    decoder = decoder_of(depth=0, class_token=False)
    visible = torch.tensor([[[0, 1, 0], [0, 0, 1]], [[1, 1, 1], [0, 0, 0]]]).bool()
    x = visible_features(visible)
    positions = sincos_positions((2, 3), 8, dtype=torch.float64)[0].view(2, 3, 8)
    rows = iter(x.features)
    expected = torch.empty(2, 2, 3, 5, dtype=torch.float64)
    for b, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        seen = bool(visible[b, row, column])
        token = decoder.decoder_embed(next(rows)) if seen else decoder.mask_token[0, 0]
        token = decoder.decoder_norm(token + positions[row, column])
        expected[b, row, column] = decoder.decoder_pred(token)
    # The state dict's positions are rounded to float32.
    assert torch.allclose(decoder(x), expected, rtol=0, atol=1e-6)


def test_the_class_token_is_read_and_left_out_of_the_prediction() -> None:
    decoder = decoder_of()
    x = visible_features(torch.tensor([[[0, 1, 0], [0, 0, 1]]]).bool())
    first, second = (decoder(x, torch.full((1, 6), value, dtype=torch.float64)) for value in (1.0, 2.0))
    assert first.shape == (1, 2, 3, 5) and not torch.allclose(first, second, atol=1e-3)


def test_another_grid_is_as_if_made_for_it() -> None:
    x = visible_features(torch.eye(4, 2).bool()[None])
    token = torch.randn(1, 6, dtype=torch.float64)
    made, other = decoder_of(grid=(4, 2)), decoder_of(grid=(3, 3))
    assert torch.allclose(made(x, token), other(x, token), rtol=0, atol=1e-6)
    other.load_state_dict(made.state_dict())
    assert other.decoder_pos_embed.shape == (1, 10, 8)
    assert torch.allclose(made(x, token), other(x, token), rtol=0, atol=1e-6)
