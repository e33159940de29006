"""Compile every kernel to machine code, without a GPU, and report what a thread of each takes.

    python -m sparse_ops.backends.triton_gpu.compile_report --out docs/benchmarks/kernels.json

The launches are recorded, not described: each launcher runs on tensors without memory, and what it would have
started is compiled. So the defaults in the report are the defaults. Ends with exit code 1 where one spills.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sparse_ops.backends.triton_gpu import conv_kernels, conv_launch, grn_passes

TARGETS = (80, 90, 100)
"""Compute capabilities: A100, H100 and H200, B200."""

DTYPES = (torch.bfloat16, torch.float32)

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
}

WIDTHS = {4: (128, 96, 80), 2: (512, 320, 160), 1: (1024, 320, 160)}
"""Sides of the cells, and channels that choose each configuration; the first are ConvNeXt V2-Base's."""

HIDDEN = 1024
"""Channels that GRN sees."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Recorded:
    """One launch: the kernel and what it is compiled for."""

    kernel: Any
    default: bool
    dtype: str
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """The same for launches of one binary."""
        return repr((self.kernel.__name__, self.signature, self.constants, self.divisible, self.options))


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _convolutions(dtype: torch.dtype) -> Iterator[Call]:
    """Launches of the convolution. In float32 only 7 x 7, the largest, and one that is not unrolled."""
    tables = (_empty(4096, dtype=torch.int64), _empty(2, 64, 64, dtype=torch.int32))
    for side, widths in WIDTHS.items():
        half = dtype is torch.bfloat16
        for channels in widths if half else widths[:1]:
            rows = _empty(4096, channels, dtype=dtype)
            for kernel in (7, 9, 5, 3) if half and channels == widths[0] else (7, 9):
                taps = _empty(kernel**2 + 1, channels, dtype=torch.float32)
                sizes = {"kernel": kernel, "side": side}
                yield partial(conv_launch.forward_rows, rows, taps, *tables, **sizes)
                yield partial(conv_launch.weight_gradient, rows, rows, *tables, **sizes)


def _passes(dtype: torch.dtype, launch: grn_passes.Launch | None) -> Iterator[Call]:
    """Launches of the passes around GRN."""
    x, offsets = _empty(4096, HIDDEN, dtype=dtype), _empty(9, dtype=torch.int64)
    scale, shift = _empty(8, HIDDEN, dtype=torch.float32), _empty(HIDDEN, dtype=dtype)
    partials = _empty(8, 4, HIDDEN, dtype=torch.float32)
    for gelu in (True, False):
        options = {"gelu": gelu, "launch": launch}
        yield partial(grn_passes.column_sums, x, None, offsets, **options)
        yield partial(grn_passes.column_sums, x, x, offsets, **options)
        yield partial(grn_passes.apply, x, scale, shift, offsets, **options)
        operands = (x, x, scale, scale, offsets)
        yield partial(grn_passes.apply_backward, *operands, hidden=x if gelu else None, launch=launch)
    yield partial(grn_passes.scales, partials, shift, 1e-6)
    yield partial(grn_passes.scales_backward, partials, scale, shift, 1e-6)


def recorded() -> list[Recorded]:
    """Every launch once: what the backend launches by itself, then configurations that benchmarks try."""
    calls = [(True, dtype, call) for dtype in DTYPES for call in _convolutions(dtype)]
    for dtype in DTYPES:
        for launch in grn_passes.LAUNCHES:
            default = launch in grn_passes.LAUNCHES[:2]
            if default or dtype is torch.bfloat16:
                calls += [(default, dtype, call) for call in _passes(dtype, launch)]
    launches: dict[str, Recorded] = {}
    for default, dtype, call in sorted(calls, key=lambda entry: not entry[0]):
        started = []
        with mock.patch.object(JITFunction, "run", lambda *a, _to=started, **k: _to.append((a, k))):
            call()
        for (kernel, *operands), keywords in started:
            launch = _describe(kernel, operands, keywords, default, str(dtype).removeprefix("torch."))
            launches.setdefault(launch.key, launch)
    return list(launches.values())


def _describe(kernel: Any, operands: list, keywords: dict, default: bool, dtype: str) -> Recorded:
    given = dict(zip(kernel.arg_names, operands, strict=False)) | keywords
    signature, constants, divisible = {}, {}, []
    for parameter in kernel.params:
        value = given.pop(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
        if aligned and not parameter.do_not_specialize:
            divisible.append(parameter.name)
    options = {name: value for name, value in given.items() if name not in ("grid", "warmup")}
    return Recorded(kernel, default, dtype, signature, constants, tuple(divisible), options)


def compile_one(index: int, capability: int) -> dict[str, Any]:
    """A launch's row of the report."""
    launch = recorded()[index]
    place = launch.kernel.arg_names.index
    source = ASTSource(
        launch.kernel,
        launch.signature,
        constexprs={(place(name),): value for name, value in launch.constants.items()},
        attrs={(place(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tools / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    return {
        "kernel": launch.kernel.__name__,
        "dtype": launch.dtype,
        "constants": {name: value for name, value in launch.constants.items() if value is not None},
        "num_warps": launch.options["num_warps"],
        "default": launch.default,
        "target": f"sm_{capability}",
        "registers": found["REG"],
        # These kernels keep no arrays: what a thread has in local memory, it has spilled.
        "spilled_bytes": found["STACK"],
        "shared_bytes": compiled.metadata.shared,
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel and report its registers.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    if not isinstance(conv_kernels.conv_forward, JITFunction):
        parser.error("TRITON_INTERPRET: expected unset, got 1. The interpreter compiles nothing; unset it.")
    pairs = [(index, target) for index in range(len(recorded())) for target in TARGETS]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(compile_one, *zip(*pairs, strict=True)))
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(f'{{\n"triton": "{triton.__version__}",\n"kernels": [\n  {lines}\n]\n}}\n')
    spilled = [row for row in rows if row["default"] and row["spilled_bytes"]]
    for row in spilled:
        where = f"{row['kernel']} {row['constants']} on {row['target']}"
        print(f"{where}: {row['spilled_bytes']} bytes a thread spilled.", file=sys.stderr)
    print(f"{len(rows)} binaries in {args.out}; {len(spilled)} of the defaults spill.")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
