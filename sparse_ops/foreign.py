"""What the adapters to other engines share: whether one is there, and sites as coordinates and back."""

import importlib

import torch
from torch import Tensor

from sparse_ops.dispatch import Call
from sparse_ops.sites import ActiveSites


def missing(module: str, hint: str) -> list[str]:
    """The reason why `module` cannot be imported, with the hint what to do about it; [] where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a build for another torch fails in any way, not only with ImportError
        return [f"{' '.join(str(error).split())}: {hint}"]
    return []


def unfit(call: Call, dtypes: dict[str, tuple[torch.dtype, ...]]) -> list[str]:
    """The reason why the rows cannot be handed over: their device, or a dtype outside those of the device."""
    features = call.features
    if features.device.type not in dtypes:
        return [f"runs on {' and '.join(dtypes)} only"]
    known = dtypes[features.device.type]
    if features.dtype not in known:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in known)
        return [f"takes {names} on {features.device.type} only"]
    return []


def centred(call: Call) -> list[str]:
    """The reason why an engine that centres kernels of odd side downsamples otherwise than we do."""
    factor = 1 if call.weight is None else call.weight.shape[-1]
    if call.op == "downsample_conv2d" and factor > 1 and factor % 2 == 1:
        return ["centres a kernel of odd side, which then reads sites of the next patch"]
    return []


def wants_gradient(call: Call) -> bool:
    """Whether autograd will ask for the call's backward."""
    tensors = (call.features, call.weight)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def coordinates(sites: ActiveSites) -> Tensor:
    """Image, y and x of each row, int32 [N, 3]."""

    def build() -> Tensor:
        site = sites.site_of_row
        y, x = site // sites.width % sites.height, site % sites.width
        return torch.stack([sites.image_of_row, y, x], dim=1).int()

    return sites.table("coordinates", build)


def rows_at(places: Tensor, sites: ActiveSites) -> Tensor:
    """Row of each active site given as image, y and x, int [N, 3] -> int64 [N]."""
    image, y, x = places.long().unbind(1)
    return sites.row_of_site[image, y, x].long()


def in_our_order(features: Tensor, places: Tensor, sites: ActiveSites) -> Tensor:
    """Rows that stand in an engine's order, at `places` (image, y, x), in the order of `sites`."""
    return torch.zeros_like(features).index_copy(0, rows_at(places, sites), features)
