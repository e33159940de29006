"""The adapters to MinkowskiEngine and WarpConvNet: layouts, and what they make of an engine's own row order.

Where an engine imports, it is run. Elsewhere a stand-in takes its place, written from the engine's documented
interface and the definition of its kernel offsets; it shows that the adapter converts, not that the engine
still has this interface.
"""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sparse_ops import (
    ActiveSites,
    Backend,
    BackendUnavailableError,
    SparseImage,
    downsample_conv2d,
    functional,
    global_response_norm,
    subm_conv2d,
)
from sparse_ops.backends import minkowski_adapter, warpconvnet_adapter
from sparse_ops.backends.minkowski_adapter import from_minkowski, to_minkowski
from sparse_ops.backends.warpconvnet_adapter import from_warpconvnet, to_warpconvnet
from sparse_ops.foreign import missing
from sparse_ops.testing import assert_parity, make_sites

Offset = Callable[[int, int], tuple[int, int]]


def column_first(index: int, side: int) -> tuple[int, int]:
    """MinkowskiEngine: y is the fastest."""
    return index % side, index // side


def row_first(index: int, side: int) -> tuple[int, int]:
    """WarpConvNet: x is the fastest."""
    return index // side, index % side


def convolve(features: Tensor, places: Tensor, outputs: Tensor, kernel: Tensor, offset: Offset) -> Tensor:
    """The sum over kernel offsets, at `outputs`, of the features found there times the kernel; even kernels
    start at offset 0.
    """
    side = round(len(kernel) ** 0.5)
    low = -(side // 2) if side % 2 else 0
    out = features.new_zeros(len(outputs), kernel.shape[-1])
    for index in range(len(kernel)):
        y, x = offset(index, side)
        wanted = outputs + outputs.new_tensor([0, y + low, x + low])
        found = (wanted[:, None] == places).all(2).to(features.dtype) @ features
        out = out + (found @ kernel[index] if kernel.ndim == 3 else found * kernel[index])
    return out


def minkowski_stand_in() -> ModuleType:
    engine = ModuleType("MinkowskiEngine")

    class SparseTensor:
        def __init__(self, features, coordinates=None, coordinate_map_key=None, coordinate_manager=None):
            if coordinates is not None:
                assert coordinates.dtype == torch.int32 and coordinate_map_key is None
                coordinate_map_key, coordinate_manager = "first", {"first": coordinates.flip(0)}
                features = features.flip(0)
            self.coordinate_map_key, self.coordinate_manager = coordinate_map_key, coordinate_manager
            self.F, self.C = features, coordinate_manager[coordinate_map_key]

    class Convolution(nn.Module):
        def __init__(self, shape: tuple[int, ...], side: int, stride: int):
            super().__init__()
            self.flat = side == stride == 1 and len(shape) == 2  # a matrix instead of a stack of one
            self.kernel = nn.Parameter(torch.empty(shape if self.flat else (side * side, *shape)))
            self.shape, self.stride = self.kernel.shape, stride

        def forward(self, x: SparseTensor) -> SparseTensor:
            assert self.kernel.shape == self.shape
            places = torch.cat([x.C[:, :1], x.C[:, 1:] // self.stride * self.stride], 1).unique(dim=0)
            outputs = x.C if self.stride == 1 else places
            kernel = self.kernel[None] if self.flat else self.kernel
            out = convolve(x.F, x.C, outputs, kernel, column_first)
            key = f"stride {self.stride}"
            manager = {**x.coordinate_manager, key: outputs}
            return SparseTensor(out, coordinate_map_key=key, coordinate_manager=manager)

    engine.SparseTensor = SparseTensor
    engine.MinkowskiConvolution = lambda inputs, outputs, kernel_size, stride, dimension: Convolution(
        (inputs, outputs), kernel_size, stride
    )
    engine.MinkowskiChannelwiseConvolution = lambda channels, kernel_size, stride, dimension: Convolution(
        (channels,), kernel_size, stride
    )
    return engine


def warpconvnet_stand_in() -> dict[str, ModuleType]:
    names = ("geometry.types.voxels", "geometry.coords.search.cache")
    names += ("nn.modules.sparse_conv", "nn.modules.sparse_conv_depth")
    modules = {name: ModuleType(name) for name in names}

    class Voxels:
        def __init__(self, coordinates, features, offsets, _cache):
            assert offsets.device.type == "cpu" and len(coordinates) == len(features) == offsets[-1]
            images = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
            self.batch_indexed_coordinates = torch.cat([images[:, None].int(), coordinates], 1)
            self.feature_tensor, self.offsets, self.cache = features, offsets, _cache

    class Convolution(nn.Module):
        def __init__(self, shape: tuple[int, ...], side: int, stride: int = 1):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(side * side, *shape))
            assert self.weight.is_meta, "the layer's own weight costs memory and random numbers"
            self.shape, self.stride = self.weight.shape, stride

        def forward(self, x: Voxels) -> Voxels:
            assert self.weight.shape == self.shape
            places = x.batch_indexed_coordinates
            stride = places.new_tensor([1, self.stride, self.stride])
            outputs = places if self.stride == 1 else (places // stride).unique(dim=0).flip(0)
            outputs = outputs[outputs[:, 0].argsort(stable=True)]  # images in order, sites in any
            out = convolve(x.feature_tensor, places, outputs * stride, self.weight, row_first)
            offsets = torch.searchsorted(outputs[:, 0].contiguous(), torch.arange(len(x.offsets)).int())
            return Voxels(outputs[:, 1:], out, offsets, x.cache)

    modules["geometry.types.voxels"].Voxels = Voxels
    modules["geometry.coords.search.cache"].IntSearchCache = dict
    modules["nn.modules.sparse_conv"].SparseConv2d = lambda inputs, outputs, side, stride, bias: Convolution(
        (inputs, outputs), side, stride
    )
    modules["nn.modules.sparse_conv_depth"].SparseDepthwiseConv2d = lambda channels, side, bias: Convolution(
        (channels,), side
    )
    return {"warpconvnet": ModuleType("warpconvnet")} | {
        f"warpconvnet.{name}": module for name, module in modules.items()
    }


@pytest.fixture(params=["minkowski-stand-in", "warpconvnet-stand-in", "minkowski-itself"])
def backend(request, monkeypatch) -> str:
    """A backend that can be run on a CPU, with the engine itself or what stands in for it."""
    name, _, kind = request.param.partition("-")
    if kind == "itself":
        if reason := missing("MinkowskiEngine", minkowski_adapter.HINT):
            pytest.skip(f"{name}: {reason[0]}")
    elif name == "minkowski":
        monkeypatch.setitem(sys.modules, "MinkowskiEngine", minkowski_stand_in())
    else:
        for module, stand_in in warpconvnet_stand_in().items():
            monkeypatch.setitem(sys.modules, module, stand_in)
        monkeypatch.setitem(warpconvnet_adapter.DTYPES, "cpu", (torch.float32,))
    return name


NAMES = ("features", "weight", "bias")


def convolution(groups: int, sites: ActiveSites, backend: str) -> Callable[..., Tensor]:
    return lambda f, w, b: subm_conv2d(SparseImage(f, sites), w, b, groups=groups, backend=backend).features


def downsampling(sites: ActiveSites, backend: str) -> Callable[..., Tensor]:
    return lambda f, w, b: downsample_conv2d(SparseImage(f, sites), w, b, backend=backend).features


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("case", ["random", "ragged", "empty_image", "irregular"])
def test_convolution(backend: str, case: str, kernel: int, groups: int) -> None:
    sites = make_sites(case)
    assert_parity(
        "subm_conv2d",
        lambda name: convolution(groups, sites, name),
        [(sites.num_sites, 5), (5, 5 // groups, kernel, kernel), (5,)],
        backend=backend,
        dtype=torch.float32,
        names=NAMES,
    )


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("case", ["random", "ragged", "one_patch", "non_square"])
def test_downsampling(backend: str, case: str, factor: int) -> None:
    sites = make_sites(case)
    assert_parity(
        "downsample_conv2d",
        lambda name: downsampling(sites, name),
        [(sites.num_sites, 5), (4, 5, factor, factor), (4,)],
        backend=backend,
        dtype=torch.float32,
        names=NAMES,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 8])
def test_warpconvnet_itself(groups: int) -> None:
    if reason := missing("warpconvnet", warpconvnet_adapter.HINT):
        pytest.skip(f"warpconvnet: {reason[0]}")
    sites = ActiveSites.from_patches(torch.rand(2, 3, 3, device="cuda") < 0.5, tile=4)

    def build(name: str) -> Callable[..., Tensor]:
        return lambda *inputs: convolution(groups, sites, name)(*(t.cuda() for t in inputs)).cpu()

    shapes = [(sites.num_sites, 8), (8, 8 // groups, 7, 7), (8,)]
    assert_parity("subm_conv2d", build, shapes, backend="warpconvnet", dtype=torch.float32, names=NAMES)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("depthwise", [True, False])
def test_layouts_follow_their_definition_and_are_their_own_inverse(side: int, depthwise: bool) -> None:
    weight = torch.randn(4, 1 if depthwise else 3, side, side)
    pairs = [
        (to_minkowski(weight, depthwise=depthwise), column_first),
        (to_warpconvnet(weight, depthwise=depthwise), row_first),
    ]
    for kernel, offset in pairs:
        for index, entry in enumerate(kernel.reshape(side * side, -1)):
            y, x = offset(index, side)
            assert torch.equal(entry, weight[:, :, y, x].t().reshape(-1))
    assert torch.equal(from_minkowski(pairs[0][0], depthwise=depthwise), weight)
    assert torch.equal(from_warpconvnet(pairs[1][0]), weight)
    assert pairs[0][0].shape == ((side * side, 4) if depthwise else (side * side, 3, 4)[-2 - (side > 1) :])


@pytest.mark.parametrize(
    ("name", "adapter", "package"),
    [
        (Backend.MINKOWSKI, minkowski_adapter, "MinkowskiEngine"),
        (Backend.WARPCONVNET, warpconvnet_adapter, "warpconvnet"),
    ],
)
def test_refusals_are_named(name: Backend, adapter: ModuleType, package: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    sites = make_sites("odd_tile")
    x = SparseImage(torch.ones(sites.num_sites, 4, dtype=torch.bfloat16), sites)
    expected = "takes float32, float64 on cpu only" if name is Backend.MINKOWSKI else "runs on cuda only"
    with pytest.raises(
        BackendUnavailableError, match=f"{name}: import of {package} halted.*github.com.*{expected}"
    ):
        subm_conv2d(x, torch.ones(4, 4, 3, 3, dtype=torch.bfloat16), backend=name)
    with pytest.raises(BackendUnavailableError, match=f"{name}: .*; centres a kernel of odd side"):
        downsample_conv2d(x, torch.ones(4, 4, 3, 3, dtype=torch.bfloat16), backend=name)
    with pytest.raises(BackendUnavailableError, match=f"{name}: .* none of this kind; use backend 'scatter'"):
        global_response_norm(x, torch.ones(4), torch.ones(4), backend=name)


def test_an_engine_of_others_is_never_chosen() -> None:
    order = list(functional._ENGINES)
    last = order.index(Backend.REFERENCE)
    assert functional.engine("reference").reasons(None) == []
    assert set(order[last + 1 :]) == {Backend.SPCONV, Backend.MINKOWSKI, Backend.WARPCONVNET}
