"""spconv 2.3: regular convolutions, by the indices (image, y, x) of the rows. It has no depthwise one.

Run in the tests with the CPU wheel 2.3.8: the forward, and the gradients with a stand-in for the CUDA stream
that its backward asks for. The calls are the same for the CUDA wheels, with which they have not been run.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from sparse_ops.dispatch import Call
from sparse_ops.foreign import coordinates, in_our_order, missing, unfit, wants_gradient
from sparse_ops.sites import ActiveSites

DTYPES = {
    # In float16 the CPU code rounds after every kernel offset.
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float16),
}


def reasons(call: Call) -> list[str]:
    """Why spconv cannot run the call."""
    if call.op not in ("subm_conv2d", "downsample_conv2d"):
        return ["spconv has convolutions only; use backend 'scatter'"]
    found = missing("spconv.pytorch", "pip install spconv, for CUDA spconv-cu120") + unfit(call, DTYPES)
    if call.groups > 1:
        found.append("spconv has no depthwise convolution; use groups=1 or backend 'scatter'")
    if call.weight is not None and call.weight.shape[-1] == 1:
        # It is read as [C_in, C_out] whatever the layout: traveller59/spconv#772, open in 2.3.8.
        found.append("spconv mixes up the channels of a 1 x 1 kernel; use sparse_ops.linear")
    if call.features.shape[0] == 0:
        found.append("spconv takes no empty input")
    if not found and call.features.is_cuda and _module("spconv.cppconstants").CPU_ONLY_BUILD:
        found.append("this spconv is built for CPUs only: pip install spconv-cu120")
    if not call.features.is_cuda and wants_gradient(call):
        found.append("spconv's backward asks for a CUDA stream, even on a CPU; call it under torch.no_grad()")
    return found


def to_spconv(weight: Tensor) -> Tensor:
    """[C_out, C_in, k, k] -> spconv's [C_out, k, k, C_in] (KRSC)."""
    return weight.permute(0, 2, 3, 1).contiguous()


def from_spconv(kernel: Tensor) -> Tensor:
    """spconv's [C_out, k, k, C_in] (KRSC) -> [C_out, C_in, k, k]."""
    return kernel.permute(0, 3, 1, 2).contiguous()


def subm_conv2d(
    features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites, groups: int
) -> Tensor:
    """`SubMConv2d`, whose rows keep their order; its index pairs are kept with the sites."""
    kept = sites.table("spconv", dict)
    key = f"subm{weight.shape[-1]}"
    out = _convolve(features, weight, sites, kept, subm=True, indice_key=key)
    if not torch.is_inference_mode_enabled():  # pairs made under it could not be saved for a backward
        kept.update(out.indice_dict)
    return out.features if bias is None else out.features + bias


def downsample_conv2d(features: Tensor, weight: Tensor, bias: Tensor | None, sites: ActiveSites) -> Tensor:
    """`SparseConv2d` with stride = kernel; its rows are put into the order of the coarser sites."""
    factor = weight.shape[-1]
    out = _convolve(features, weight, sites, {}, stride=factor)
    rows = in_our_order(out.features, out.indices, sites.downsample(factor))
    return rows if bias is None else rows + bias


def _convolve(
    features: Tensor, weight: Tensor, sites: ActiveSites, kept: dict[str, Any], **options: Any
) -> Any:
    """The SparseConvTensor that a layer without parameters of its own makes with `weight`."""
    spconv = _module("spconv.pytorch")
    x = spconv.SparseConvTensor(
        features, coordinates(sites), [sites.height, sites.width], sites.batch_size, indice_dict=kept
    )
    layer = spconv.conv.SparseConvolution(
        2,
        weight.shape[1],
        weight.shape[0],
        weight.shape[-1],
        bias=False,
        # None lets spconv choose by the kernel's size, but as if every tensor were on a GPU.
        algo=None if features.is_cuda else _module("spconv.core").ConvAlgo.Native,
        fp32_accum=True,
        device="meta",
        **options,
    )
    with _one_thread(features):
        return functional_call(layer, {"weight": to_spconv(weight)}, (x,))


@contextmanager
def _one_thread(features: Tensor) -> Iterator[None]:
    """One thread on a CPU, where 2.3.8 adds rows up through pointers that its threads share and overwrite."""
    threads = torch.get_num_threads()
    if features.is_cuda or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _module(name: str) -> Any:
    return importlib.import_module(name)
