"""Imports run one way, and the sparse operations need nothing but torch."""

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A package may import those of a lower rank, and its neighbours of the same rank where that makes no circle.
RANKS = {
    "errors": 0,
    "arguments": 1,
    "config": 1,
    "machine": 1,
    "config_io": 2,
    "masking": 3,
    "data": 3,
    "models": 3,
    "convert": 3,
    "methods": 4,
    "training": 5,
    "evaluation": 5,
    "downstream": 5,
    "report": 5,
    "bench": 5,
    "protocols": 5,
    "ablation": 5,
    "cli": 6,
    "__main__": 7,
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(source: str) -> Iterator[str]:
    """Dotted names that a source imports, at any depth: `a.b.c` for `from a.b import c`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: a reader and this test can follow them"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """`models` for fcmae/models/blocks.py, `errors` for fcmae/errors.py."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def wrong_way(package: str, source: str) -> list[str]:
    """Imports of an fcmae package that go up, or through the top-level names that are there for users."""
    return [
        name
        for name in imported(source)
        if name.partition(".")[0] == "fcmae"
        and RANKS.get(name.split(".")[1] if "." in name else "", 99) > RANKS[package]
    ]


def outside_torch(source: str) -> list[str]:
    """Imports of anything but the standard library, torch and sparse_ops."""
    allowed = sys.stdlib_module_names | {"torch", "sparse_ops"}
    return [name for name in imported(source) if name.partition(".")[0] not in allowed]


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("data", "import fcmae.training.engine.run"),
        ("convert", "def f():\n    from fcmae.methods import create_method"),
        ("models", "from fcmae import create_method"),
        ("models", "import fcmae"),
        ("errors", "from fcmae.config import require"),
    ],
)
def test_checker_sees_imports_that_go_up(package: str, source: str) -> None:
    assert wrong_way(package, source)


def test_checker_sees_foreign_packages() -> None:
    assert outside_torch("import fcmae.config") and outside_torch("from timm.layers import DropPath")


@pytest.mark.parametrize("path", sources("fcmae"), ids=lambda path: str(path.relative_to(ROOT)))
def test_fcmae_imports_go_down(path: Path) -> None:
    if part(path) != "__init__":  # fcmae/__init__.py is the users' front door, over all packages
        assert wrong_way(part(path), path.read_text()) == []


def test_fcmae_packages_make_no_circle() -> None:
    graph = defaultdict(set)
    for path in sources("fcmae"):
        if part(path) != "__init__":
            targets = {name.split(".")[1] for name in imported(path.read_text()) if name.startswith("fcmae.")}
            graph[part(path)] |= targets - {part(path)}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("path", sources("sparse_ops"), ids=lambda path: str(path.relative_to(ROOT)))
def test_sparse_ops_imports_torch_only(path: Path) -> None:
    names = list(imported(path.read_text()))
    assert not [name for name in names if name.partition(".")[0] == "fcmae"]
    backends = ROOT / "sparse_ops" / "backends"
    if backends not in path.parents:
        assert outside_torch(path.read_text()) == []
    elif path.parent != backends or path.stem != "__init__":
        own = path.relative_to(backends).parts[0].removesuffix(".py")
        others = [name for name in names if name.startswith("sparse_ops.backends.")]
        assert {name.split(".")[2] for name in others} <= {own}, "backends never import each other"


def test_any_folders_of_tests_run_in_one_command() -> None:
    """Without packages, pytest and imports know a file of tests by its name alone."""
    paths = [path for path in sources("tests") if path.name != "conftest.py"]
    assert len({path.name for path in paths}) == len(paths)
    from_conftest = [path for path in paths if "conftest" in {*map(_first, imported(path.read_text()))}]
    assert not from_conftest, "there are several: keep helpers in a file with a name of its own"


def _first(name: str) -> str:
    return name.split(".")[0]


def test_sparse_ops_runs_without_optional_packages() -> None:
    program = """
import sys
for name in ("triton", "spconv", "MinkowskiEngine", "warpconvnet"):
    sys.modules[name] = None  # importing it raises ImportError
import torch
import sparse_ops
sites = sparse_ops.ActiveSites.from_visible_ids(torch.tensor([[0, 3]]), grid=(2, 2), tile=2)
image = sparse_ops.SparseImage(torch.ones(sites.num_sites, 4), sites)
output = sparse_ops.subm_conv2d(image, torch.ones(4, 1, 3, 3), groups=4)
sums = [4, 4, 4, 5, 5, 4, 4, 4]  # two tiles of ones that touch at one corner, in Z-order
assert torch.equal(output.features, torch.tensor(sums).float()[:, None].expand(8, 4)), output.features
assert "fcmae" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["pretrain", "--help"],
        ["finetune", "--train.stps=1"],
        ["knn", "a.pth", "--knn.neigbours=1"],
    ],
)
def test_help_and_typos_do_not_wait_for_torch(arguments: list[str]) -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom fcmae.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    expected = 0 if "--help" in arguments else 2
    assert run.returncode == expected and "Traceback" not in run.stderr, run.stderr
