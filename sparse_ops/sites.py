"""Which sites of a batch of feature grids are active, and in which order their rows stand.

Rows are ordered by image, then visible patch, then Z-order inside the patch's tile: a tile of side `t = odd
* 2**n` is a row-major square of `odd x odd` cells, each split n times into its four quarters. Siblings are
therefore neighbours, and a 2x2 stride-2 operation is a view of four rows as one; the coarser rows are in the
same order again.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.checks import require

T = TypeVar("T")


def tile_order(tile: int, device: torch.device | None = None) -> Tensor:
    """Row-major position inside a tile of each of its rows, int64 [tile * tile]."""
    odd = tile // (tile & -tile)
    cells = torch.arange(odd * odd, device=device)
    y, x = cells // odd, cells % odd
    quarters = torch.arange(4, device=device)
    for _ in range((tile // odd).bit_length() - 1):
        y = (2 * y[:, None] + quarters // 2).reshape(-1)
        x = (2 * x[:, None] + quarters % 2).reshape(-1)
    return y * tile + x


class ActiveSites:
    """The active sites of `batch_size` grids of `height x width` sites, with their index tables.

    Made by `from_visible_ids`, `from_patches` or `from_mask`. The tables of a stride are computed once and
    shared by every layer of that stride.

    Attributes:
        batch_size, height, width: Shape of the dense grid, B x H x W.
        tile: Side in sites of the dense square that every visible patch is; 1 for irregular sites.
        grid: Patches of an image, (H // tile, W // tile).
        num_sites: Active sites of the batch, N.
        rows_per_image: Active sites of each image, or None where images differ.
        patch_of_tile: int64 [P], index `b * Gh * Gw + patch` of each visible patch, in row order.
    """

    def __init__(
        self,
        patch_of_tile: Tensor,
        *,
        batch_size: int,
        grid: tuple[int, int],
        tile: int,
        tiles_per_image: int | None,
    ) -> None:
        """Use the constructors `from_*`; this one trusts its arguments."""
        self.patch_of_tile = patch_of_tile
        self.batch_size = batch_size
        self.grid = grid
        self.tile = tile
        self.height, self.width = grid[0] * tile, grid[1] * tile
        self.num_sites = patch_of_tile.shape[0] * tile * tile
        self.rows_per_image = None if tiles_per_image is None else tiles_per_image * tile * tile
        self._tiles_per_image = tiles_per_image
        self._cache: dict[Hashable, Any] = {}
        self._coarser: dict[int, ActiveSites] = {}

    @classmethod
    def from_visible_ids(cls, ids: Tensor, *, grid: tuple[int, int], tile: int) -> "ActiveSites":
        """Sites of the visible patches; the same number in every image, so nothing waits for the device.

        Args:
            ids: Visible patches of each image as row-major patch ids, int64 [B, K], without repetition.
            grid: Patches of an image, (Gh, Gw).
            tile: Side in sites of one patch.
        Raises:
            ValueError: `ids` is not int64 [B, K] or `tile` is not positive; on the CPU also ids that are
                outside the grid or repeated, which elsewhere are not looked at.
        """
        op = "ActiveSites.from_visible_ids"
        require(
            ids.ndim == 2 and ids.dtype == torch.int64,
            op,
            "ids",
            "int64 [B, K]",
            f"{ids.dtype} {list(ids.shape)}",
        )
        require(tile >= 1, op, "tile", "at least 1", tile)
        require(
            ids.shape[1] <= grid[0] * grid[1], op, "ids", f"at most {grid[0] * grid[1]} a row", ids.shape[1]
        )
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            ordered = ids.sort(dim=1).values
            proper = bool(
                (ordered.diff(dim=1) > 0).all() and (ids >= 0).all() and (ids < grid[0] * grid[1]).all()
            )
            require(proper, op, "ids", f"different ids of the {grid[0]} x {grid[1]} grid", "others")
        batch_size, kept = ids.shape
        first = torch.arange(batch_size, device=ids.device)[:, None] * (grid[0] * grid[1])
        return cls(
            (first + ids).reshape(-1), batch_size=batch_size, grid=grid, tile=tile, tiles_per_image=kept
        )

    @classmethod
    def from_patches(cls, visible: Tensor, *, tile: int) -> "ActiveSites":
        """Sites of the visible patches; images may keep different numbers. Waits for the device once.

        Args:
            visible: bool [B, Gh, Gw], True = kept.
            tile: Side in sites of one patch.
        """
        op = "ActiveSites.from_patches"
        is_mask = visible.ndim == 3 and visible.dtype == torch.bool
        require(is_mask, op, "visible", "bool [B, Gh, Gw]", f"{visible.dtype} {list(visible.shape)}")
        require(tile >= 1, op, "tile", "at least 1", tile)
        batch_size, height, width = visible.shape
        counts = visible.flatten(1).sum(1).tolist()
        same = counts[0] if len(set(counts)) == 1 else None
        patches = visible.reshape(-1).nonzero().squeeze(1)
        return cls(patches, batch_size=batch_size, grid=(height, width), tile=tile, tiles_per_image=same)

    @classmethod
    def from_mask(cls, active: Tensor) -> "ActiveSites":
        """Sites of any pattern, bool [B, H, W]; rows are in row-major order. Waits for the device once."""
        return cls.from_patches(active, tile=1)

    @property
    def device(self) -> torch.device:
        """Device of the index tables."""
        return self.patch_of_tile.device

    @property
    def order(self) -> Tensor:
        """Row-major position inside its tile of each row of a tile, int64 [tile * tile]."""
        return self.table("order", lambda: tile_order(self.tile, self.device))

    @property
    def site_of_row(self) -> Tensor:
        """Flat site `(b * H + y) * W + x` of each row, int64 [N]."""

        def build() -> Tensor:
            y, x = self._tile_origins()
            rows_y = y[:, None] + self.order // self.tile
            rows_x = x[:, None] + self.order % self.tile
            return (rows_y * self.width + rows_x).reshape(-1)

        return self.table("site_of_row", build)

    @property
    def row_of_site(self) -> Tensor:
        """Row of each site, int32 [B, H, W]; -1 = inactive."""

        def build() -> Tensor:
            shape = (self.batch_size, self.height, self.width)
            table = torch.full(shape, -1, dtype=torch.int32, device=self.device).view(-1)
            rows = torch.arange(self.num_sites, dtype=torch.int32, device=self.device)
            return table.index_copy(0, self.site_of_row, rows).view(shape)

        return self.table("row_of_site", build)

    @property
    def active(self) -> Tensor:
        """bool [B, H, W], True = active."""
        return self.row_of_site >= 0

    @property
    def image_of_row(self) -> Tensor:
        """Image of each row, int64 [N]."""
        return self.table("image_of_row", lambda: self.site_of_row // (self.height * self.width))

    @property
    def row_offsets(self) -> Tensor:
        """First row of each image, and N, int64 [B + 1]."""

        def build() -> Tensor:
            edges = torch.arange(self.batch_size + 1, device=self.device)
            if self.rows_per_image is not None:
                return edges * self.rows_per_image
            return torch.searchsorted(self.image_of_row, edges)

        return self.table("row_offsets", build)

    def halo_rows(self, radius: int) -> Tensor:
        """Rows that each tile and its halo read, int32 [P * (tile + 2 * radius)**2]; N = inactive or
        outside.
        """

        def build() -> Tensor:
            table = torch.where(self.active, self.row_of_site, self.num_sites)
            table = F.pad(table, (radius,) * 4, value=self.num_sites)
            padded_height, padded_width = table.shape[1:]
            steps = torch.arange(self.tile + 2 * radius, device=self.device)
            y, x = self._tile_origins()
            # `y` counts rows of the whole batch; the padded table has 2 * radius more in each image.
            y = y + y // self.height * (padded_height - self.height)
            sites = (y[:, None, None] + steps[:, None]) * padded_width + x[:, None, None] + steps
            return table.reshape(-1).index_select(0, sites.reshape(-1))

        return self.table(("halo", radius), build)

    def is_view_of_children(self, factor: int) -> bool:
        """Whether the `factor**2` children of every coarser site are consecutive rows, none missing."""
        power_of_two = factor & (factor - 1) == 0
        return (power_of_two and self.tile % factor == 0) or factor == self.tile

    def child_rows(self, factor: int) -> Tensor:
        """Rows of the children of each coarser site, row-major, int32 [N', factor**2]; N = inactive."""

        def build() -> Tensor:
            coarser = self.downsample(factor)
            table = torch.where(self.active, self.row_of_site, self.num_sites)
            table = table.view(self.batch_size, coarser.height, factor, coarser.width, factor)
            table = table.permute(0, 1, 3, 2, 4).reshape(-1, factor * factor)
            return table.index_select(0, coarser.site_of_row)

        return self.table(("children", factor), build)

    def downsample(self, factor: int) -> "ActiveSites":
        """Sites `factor` times coarser, active where any child is; cached.

        Raises:
            ValueError: `factor` does not divide height and width.
        """
        if factor not in self._coarser:
            divides = factor >= 1 and self.height % factor == 0 and self.width % factor == 0
            require(
                divides,
                "ActiveSites.downsample",
                "factor",
                f"a divisor of {self.height} x {self.width}",
                factor,
            )
            if self.tile % factor == 0:
                self._coarser[factor] = ActiveSites(
                    self.patch_of_tile,
                    batch_size=self.batch_size,
                    grid=self.grid,
                    tile=self.tile // factor,
                    tiles_per_image=self._tiles_per_image,
                )
            else:
                cells = self.active.view(
                    self.batch_size, self.height // factor, factor, self.width // factor, factor
                )
                self._coarser[factor] = ActiveSites.from_mask(cells.any(4).any(2))
        return self._coarser[factor]

    def table(self, key: Hashable, build: Callable[[], T]) -> T:
        """What `build` makes of these sites, built once: index tables, and what other engines keep of them.

        One built under inference mode is not kept: no backward could save it.
        """
        if key in self._cache:
            return self._cache[key]
        table = build()
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            self._cache[key] = table
        return table

    def _tile_origins(self) -> tuple[Tensor, Tensor]:
        """Top-left site of each tile: row counted over the whole batch, and column; int64 [P]."""
        y = self.patch_of_tile // self.grid[1] * self.tile
        x = self.patch_of_tile % self.grid[1] * self.tile
        return y, x

    def __repr__(self) -> str:
        return (
            f"ActiveSites({self.num_sites} of {self.batch_size} x {self.height} x {self.width} sites, "
            f"tile={self.tile}, rows_per_image={self.rows_per_image})"
        )
