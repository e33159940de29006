"""Row order, index tables and coarser sites, against what they are defined to be."""

import pytest
import torch

from sparse_ops import ActiveSites, MaskedImage, SparseImage
from sparse_ops.sites import tile_order
from sparse_ops.testing import SITE_CASES, make_sites


@pytest.mark.parametrize("tile", [1, 2, 4, 8, 3, 6, 12])
def test_tile_order_is_a_permutation_whose_quarters_are_siblings(tile: int) -> None:
    order = tile_order(tile)
    assert sorted(order.tolist()) == list(range(tile * tile))
    while tile % 2 == 0:
        y, x = order // tile, order % tile
        parents = ((y // 2) * (tile // 2) + x // 2).view(-1, 4)
        assert bool((parents == parents[:, :1]).all())
        order, tile = parents[:, 0], tile // 2
        assert torch.equal(order, tile_order(tile))


def test_z_order_of_a_tile_of_four() -> None:
    expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert tile_order(4).tolist() == expected


@pytest.mark.parametrize("case", SITE_CASES)
def test_tables_are_inverse_and_rows_ordered_by_image(case: str) -> None:
    sites = make_sites(case)
    assert sites.site_of_row.shape == (sites.num_sites,)
    assert int(sites.active.sum()) == sites.num_sites
    rows = sites.row_of_site.reshape(-1)[sites.site_of_row]
    assert torch.equal(rows.long(), torch.arange(sites.num_sites))
    assert bool((sites.image_of_row.diff() >= 0).all())
    counts = sites.active.flatten(1).sum(1)
    assert torch.equal(sites.row_offsets.diff(), counts)
    assert sites.rows_per_image == (int(counts[0]) if len(counts.unique()) == 1 else None)


@pytest.mark.parametrize("case", SITE_CASES)
def test_halo_is_the_padded_neighbourhood_of_each_tile(case: str) -> None:
    sites = make_sites(case)
    radius, tile = 3, sites.tile
    halo = sites.halo_rows(radius).view(-1, tile + 2 * radius, tile + 2 * radius)
    gh, gw = sites.grid
    for number, patch in enumerate(sites.patch_of_tile.tolist()):
        image, y, x = patch // (gh * gw), patch % (gh * gw) // gw * tile, patch % gw * tile
        for dy in range(-radius, tile + radius):
            for dx in range(-radius, tile + radius):
                inside = 0 <= y + dy < sites.height and 0 <= x + dx < sites.width
                row = int(sites.row_of_site[image, y + dy, x + dx]) if inside else -1
                expected = sites.num_sites if row < 0 else row
                assert int(halo[number, dy + radius, dx + radius]) == expected


def test_visible_ids_and_patches_give_the_same_sites() -> None:
    visible = torch.zeros(2, 2, 3, dtype=torch.bool)
    visible[0, 0, 1] = visible[0, 1, 2] = visible[1, 0, 0] = visible[1, 1, 0] = True
    ids = torch.tensor([[1, 5], [0, 3]])
    a = ActiveSites.from_visible_ids(ids, grid=(2, 3), tile=4)
    b = ActiveSites.from_patches(visible, tile=4)
    assert torch.equal(a.site_of_row, b.site_of_row) and a.rows_per_image == b.rows_per_image == 32


@pytest.mark.parametrize("case", SITE_CASES)
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_coarser_sites_are_active_where_any_child_is(case: str, factor: int) -> None:
    sites = make_sites(case, tile=4)
    if sites.height % factor or sites.width % factor:
        with pytest.raises(ValueError, match="divisor"):
            sites.downsample(factor)
        return
    coarser = sites.downsample(factor)
    cells = sites.active.view(sites.batch_size, coarser.height, factor, coarser.width, factor)
    assert torch.equal(coarser.active, cells.any(4).any(2))
    assert sites.downsample(factor) is coarser


def test_dense_round_trip_and_fill() -> None:
    sites = make_sites("ragged")
    dense = torch.randn(2, 12, 12, 5, requires_grad=True)
    image = SparseImage.from_dense(dense, sites)
    token = torch.randn(5, requires_grad=True)
    out = image.densify(token)
    active = sites.active
    assert torch.equal(out[active], dense[active])
    assert torch.equal(out[~active], token.expand(int((~active).sum()), 5))
    out.sum().backward()
    assert torch.equal(dense.grad, active[..., None].float().expand_as(dense))
    assert torch.equal(token.grad, (~active).sum().float().expand(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ActiveSites.from_visible_ids(torch.zeros(2, 3), grid=(2, 2), tile=4), "int64"),
        (lambda: ActiveSites.from_visible_ids(torch.zeros(2, 5).long(), grid=(2, 2), tile=4), "at most 4"),
        (lambda: ActiveSites.from_visible_ids(torch.tensor([[0, 4]]), grid=(2, 2), tile=4), "different ids"),
        (lambda: ActiveSites.from_visible_ids(torch.tensor([[1, 1]]), grid=(2, 2), tile=4), "different ids"),
        (lambda: MaskedImage(torch.zeros(1, 12, 12, 2), make_sites("random")), "expected features"),
        (lambda: ActiveSites.from_patches(torch.ones(2, 2, 2), tile=4), "bool"),
        (lambda: make_sites("random").downsample(5), "divisor"),
        (lambda: SparseImage(torch.zeros(3, 2), make_sites("random")), r"expected features \[192, C\]"),
        (lambda: SparseImage.from_dense(torch.zeros(1, 2, 2, 3), make_sites("random")), "expected dense"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_features_and_sites_live_on_one_device() -> None:
    sites = make_sites("random")
    with pytest.raises(ValueError, match=r"SparseImage: expected features on cpu, .*, got meta"):
        SparseImage(torch.empty(sites.num_sites, 2, device="meta"), sites)
