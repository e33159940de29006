"""Feature maps of which only some sites exist: as rows of the active ones, or dense with a mask."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ops.checks import require, require_no_tangents
from sparse_ops.sites import ActiveSites


@torch.library.custom_op("sparse_ops::gather_rows", mutates_args=())
def _gather_rows(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index)


@_gather_rows.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty((index.shape[0], *table.shape[1:]))


def _gather_setup(ctx, inputs, output) -> None:
    table, index = inputs
    ctx.save_for_backward(index)
    ctx.shape = table.shape


def _gather_backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
    # Rows are unique, so the gradient is a copy; autograd's own would be a scatter-add.
    (index,) = ctx.saved_tensors
    return grad.new_zeros(ctx.shape).index_copy(0, index, grad), None


_gather_rows.register_autograd(_gather_backward, setup_context=_gather_setup)


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` for an index without repetition: [M, C], int64 [N] -> [N, C]."""
    require_no_tangents("gather_rows", table)
    return _gather_rows(table, index)


@dataclass(frozen=True, eq=False)
class SparseImage:
    """Features of the active sites only.

    Attributes:
        features: [N, C], a row per active site in the order of `sites`.
        sites: Which sites the rows are.
    """

    features: Tensor
    sites: ActiveSites

    def __post_init__(self) -> None:
        matches = self.features.ndim == 2 and self.features.shape[0] == self.sites.num_sites
        # The message is made only when it is needed: sizes may be symbols under torch.compile.
        if not matches:
            expected = f"[{self.sites.num_sites}, C]"
            require(False, "SparseImage", "features", expected, list(self.features.shape))
        require(
            self.features.device == self.sites.device,
            "SparseImage",
            "features",
            f"on {self.sites.device}, where the sites are",
            self.features.device,
        )

    @classmethod
    def from_dense(cls, dense: Tensor, sites: ActiveSites) -> "SparseImage":
        """The active sites of `dense` [B, H, W, C]; its other sites are not looked at."""
        grid = (sites.batch_size, sites.height, sites.width)
        matches = dense.ndim == 4 and tuple(dense.shape[:3]) == grid
        if not matches:
            shape = f"[{', '.join(map(str, grid))}, C]"
            require(False, "SparseImage.from_dense", "dense", shape, list(dense.shape))
        return cls(gather_rows(dense.reshape(-1, dense.shape[-1]), sites.site_of_row), sites)

    def densify(self, fill: Tensor | None = None) -> Tensor:
        """Scatter the features to [B, H, W, C], with `fill` [C] (a mask token) or 0 at the inactive sites."""
        sites = self.sites
        channels = self.features.shape[1]
        total = sites.batch_size * sites.height * sites.width
        if fill is None:
            base = self.features.new_zeros(total, channels)
        else:
            require(
                fill.shape == (channels,), "SparseImage.densify", "fill", f"[{channels}]", list(fill.shape)
            )
            base = fill.to(self.features.dtype).expand(total, channels)
        dense = base.index_copy(0, sites.site_of_row, self.features)
        return dense.view(sites.batch_size, sites.height, sites.width, channels)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "SparseImage":
        """Apply a pointwise function of [N, C]."""
        return SparseImage(fn(self.features), self.sites)

    def with_features(self, features: Tensor) -> "SparseImage":
        """The same sites with other features."""
        return SparseImage(features, self.sites)


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """The dense emulation of a SparseImage: features at all sites, and which of them count.

    Operations give at the active sites what they give for the SparseImage; what stands at the others is
    arbitrary.

    Attributes:
        features: [B, H, W, C].
        sites: Which sites are active.
    """

    features: Tensor
    sites: ActiveSites

    def __post_init__(self) -> None:
        grid = (self.sites.batch_size, self.sites.height, self.sites.width)
        if self.features.ndim != 4 or tuple(self.features.shape[:3]) != grid:
            shape = f"[{', '.join(map(str, grid))}, C]"
            require(False, "MaskedImage", "features", shape, list(self.features.shape))

    @property
    def mask(self) -> Tensor:
        """1 at active sites and 0 elsewhere, [B, H, W, 1], dtype of the features."""
        return self.sites.active.unsqueeze(-1).to(self.features.dtype)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "MaskedImage":
        """Apply a pointwise function of [B, H, W, C]."""
        return MaskedImage(fn(self.features), self.sites)

    def with_features(self, features: Tensor) -> "MaskedImage":
        """The same sites with other features."""
        return MaskedImage(features, self.sites)


Image = SparseImage | MaskedImage | Tensor
"""What every op takes: rows of the active sites, a dense map with a mask, or a plain dense [B, H, W, C]
tensor.
"""


def features_of(x: Image) -> Tensor:
    """The features: [N, C] or [B, H, W, C]."""
    return x if isinstance(x, Tensor) else x.features


def with_features(x: Image, features: Tensor) -> Image:
    """`features` in the representation of `x`."""
    return features if isinstance(x, Tensor) else x.with_features(features)
