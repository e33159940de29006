"""What every test relies on: Triton's interpreter without CUDA, poisoned memory, required backends."""

import os
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported, and torch imports Triton only when something asks for it.
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"

# Without it older PyTorch (2.7) refuses GEMMs on CUDA under deterministic algorithms, which every test sets.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Test tensors are small: more threads only wait for each other, and for those of other test processes.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backends",
        default="",
        metavar="NAMES",
        help="Comma-separated backends of sparse_ops: a test that skips for want of one fails instead.",
    )


def pytest_configure(config: pytest.Config) -> None:
    from sparse_ops import Backend

    known = set(Backend) - {Backend.AUTO}
    if unknown := _required(config) - known:
        expected, got = (", ".join(sorted(names)) for names in (known, unknown))
        raise pytest.UsageError(f"--require-backends: expected names from {expected}, got {got}.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Fail a test that skips with `pytest.skip("<backend>: <why>")` when that backend is required."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.partition(":")[0] in _required(item.config):
            report.outcome = "failed"
            report.longrepr = f"a required backend was skipped: {reason}"
    return report


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same draws in every run: a test that fails once fails again."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill `torch.empty` with NaN: an element that nothing writes must not pass for a zero."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def _required(config: pytest.Config) -> set[str]:
    return set(config.getoption("--require-backends").split(",")) - {""}
