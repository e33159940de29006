"""What every encoder is: stages of sites, run on whole images or on their visible patches."""

from torch import Tensor, nn

from fcmae.errors import InputError
from fcmae.masking import patch_grid
from sparse_ops import ActiveSites, SparseImage


class Encoder(nn.Module):
    """Base of the encoders: `forward(images, visible=None, *, sites=None, execution="sparse")`.

    It returns the features of every stage: dense maps [B, H, W, C] of whole images, a SparseImage of the
    visible patches, or a MaskedImage where the execution is an emulation.

    Args:
        depths: Blocks of each stage.
        dims: Width of each stage.
        in_chans: Channels of the images.
        strides: Pixels per site of each stage.
    Raises:
        InputError: depths and dims do not fit together.
    """

    def __init__(
        self, depths: tuple[int, ...], dims: tuple[int, ...], *, in_chans: int, strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        if not len(depths) == len(dims) == len(strides) or not depths:
            raise InputError(f"depths and dims: expected one entry a stage, got {depths} and {dims}.")
        self.depths, self.dims, self.strides = tuple(depths), tuple(dims), tuple(strides)
        self.in_chans = in_chans

    @property
    def max_stride(self) -> int:
        """Pixels per site of the last stage; the patch size is a multiple of it."""
        return self.strides[-1]

    def embed(self, images: Tensor, *, sites: ActiveSites | None = None) -> Tensor:
        """One vector an image: the mean of the last stage's features over the visible sites.

        Hidden sites take no part: neither their features nor their number. The features have not gone
        through a last norm, since a ConvNet's belongs to its head; who compares vectors normalises them.

        Args:
            images: [B, in_chans, H, W], H and W divisible by `max_stride`.
            sites: The first stage's active sites; None: all of them.
        Returns:
            [B, dims[-1]]; 0 for an image without visible sites.
        """
        features = self(images, sites=sites)[-1]
        if not isinstance(features, SparseImage):
            return features.mean(dim=(1, 2))
        rows, sites = features.features, features.sites
        if sites.rows_per_image is not None:
            return rows.unflatten(0, (sites.batch_size, -1)).mean(dim=1)
        sums = rows.new_zeros(sites.batch_size, rows.shape[1]).index_add(0, sites.image_of_row, rows)
        return sums / sites.row_offsets.diff().clamp(min=1).unsqueeze(1)

    def first_sites(
        self, images: Tensor, visible: Tensor | None, sites: ActiveSites | None
    ) -> ActiveSites | None:
        """The first stage's active sites; None: images are whole.

        Args:
            images: [B, in_chans, H, W], H and W divisible by `max_stride`.
            visible: Visible patches, bool [B, Gh, Gw]. Reading it waits for the device once.
            sites: The same as sites, instead of `visible`; nothing waits.
        Raises:
            InputError: sides, channels or the patch grid do not fit, or both masks are given.
        """
        if images.ndim != 4:
            raise InputError(f"images: expected [B, {self.in_chans}, H, W], got {list(images.shape)}.")
        size = (images.shape[2], images.shape[3])
        patch_grid(size, self.max_stride)
        if images.shape[1] != self.in_chans:
            raise InputError(
                f"images: expected {self.in_chans} channels, got {images.shape[1]}. "
                f"Set in_chans={images.shape[1]}."
            )
        if visible is None:
            return sites
        if sites is not None or visible.ndim != 3 or visible.shape[0] != images.shape[0]:
            raise InputError(
                f"visible: expected bool [{images.shape[0]}, Gh, Gw] and no sites, got "
                f"{list(visible.shape)}{'' if sites is None else ' and sites'}."
            )
        return ActiveSites.from_patches(visible, tile=self.tile_of(size, visible.shape[1:]))

    def tile_of(self, image_size: tuple[int, int], grid: tuple[int, ...]) -> int:
        """Sites of the first stage along the side of one patch, for a patch grid (Gh, Gw).

        Raises:
            InputError: the grid does not cut the image into squares whose side `max_stride` divides.
        """
        patch = image_size[0] // max(1, grid[0])
        fits = (
            patch > 0
            and tuple(grid) == (image_size[0] / patch, image_size[1] / patch)
            and patch % self.max_stride == 0
        )
        if not fits:
            raise InputError(
                f"visible: expected square patches, a multiple of {self.max_stride} pixels wide, got "
                f"{grid[0]} x {grid[1]} for {image_size[0]} x {image_size[1]} pixels."
            )
        return patch // self.strides[0]
