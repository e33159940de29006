"""The comparison of engines on a tiny size: what is timed, what is named instead, and bad input."""

import json

import pytest
import torch

from fcmae.bench.ops import main
from fcmae.cli import main as fcmae
from fcmae.errors import InputError
from sparse_ops import functional
from sparse_ops.backends import scatter, spconv_adapter

pytestmark = pytest.mark.filterwarnings("ignore:'locale.getdefaultlocale' is deprecated")

TINY = ["--channels", "4", "--image-size", "64", "--batch-size", "1", "--mask-ratio", "0.5", "--steps", "2"]
OPERATIONS = ["depthwise 7x7", "regular 3x3", "downsample 2x2", "grn", "grn_mlp"]


def run(tmp_path, *engines: str) -> tuple[int, dict[tuple[str, str], dict]]:
    path = tmp_path / "new" / "ops.json"  # its folder is made
    code = main([*TINY, "--engines", *engines, "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["machine"]["torch"] == torch.__version__ and report["settings"]["channels"] == 4
    return code, {(r["operation"], r["engine"]): r for r in report["results"]}


def test_every_operation_is_timed_forward_and_with_backward(tmp_path, capsys) -> None:
    engines = ("masked_dense", "reference", "scatter")
    code, results = run(tmp_path, *engines)
    assert code == 0 and set(results) == {(op, engine) for op in OPERATIONS for engine in engines}
    for result in results.values():
        assert result["forward_ms"] > 0 and result["forward_backward_ms"] > 0 and not result["reasons"]
        assert [len(seconds) for seconds in result["seconds"].values()] == [2, 2]
    printed = capsys.readouterr().out
    assert "2 of 4 patches visible" in printed and "not timed" not in printed
    assert all(f"{op:<16}{engine}" in printed for op in OPERATIONS for engine in engines)


def test_engines_that_cannot_run_are_listed_with_their_reason(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "MinkowskiEngine", None)
    code, results = run(tmp_path, "minkowski")
    assert code == 0 and all(r["forward_ms"] is None for r in results.values())
    printed = capsys.readouterr().out
    assert "minkowski, depthwise 7x7, regular 3x3, downsample 2x2: import of MinkowskiEngine" in printed
    assert "minkowski, grn, grn_mlp: MinkowskiEngine has none of this kind" in printed


def test_a_forward_is_timed_where_only_the_backward_cannot_run(tmp_path, capsys, monkeypatch) -> None:
    def reasons(call):
        wants = torch.is_grad_enabled() and call.features.requires_grad
        return ["it forgets"] if wants else []

    monkeypatch.setattr(scatter, "reasons", reasons)
    code, results = run(tmp_path, "scatter")
    assert code == 0 and all(r["forward_ms"] > 0 for r in results.values())
    assert all(r["forward_backward_ms"] is None for r in results.values())
    assert "scatter, depthwise 7x7 (backward), regular 3x3 (backward)" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["output", "gradient 1"])
def test_an_engine_that_differs_is_named_and_not_timed(part: str, tmp_path, monkeypatch) -> None:
    right = scatter.global_response_norm

    def wrong(features, *arguments):
        out = right(features, *arguments)
        return out * 1.001 if part == "output" else out + 1e-3 * (features - features.detach())

    monkeypatch.setattr(scatter, "global_response_norm", wrong)
    code, results = run(tmp_path, "scatter")
    assert code == 1
    grn = results["grn", "scatter"]
    assert grn["forward_backward_ms"] is None and (grn["forward_ms"] is None) == (part == "output")
    assert f"differs from the reference: {part}" in grn["reasons"]["forward_backward"]
    assert results["regular 3x3", "scatter"]["forward_ms"] > 0


def test_a_failure_of_an_engine_of_others_does_not_end_the_comparison(tmp_path, monkeypatch) -> None:
    def broken(*arguments):
        raise TypeError("no such argument")

    monkeypatch.setattr(spconv_adapter, "reasons", lambda call: [])
    monkeypatch.setattr(spconv_adapter, "subm_conv2d", broken)
    monkeypatch.setattr(spconv_adapter, "downsample_conv2d", functional.engine("scatter").downsample_conv2d)
    code, results = run(tmp_path, "spconv")
    assert code == 0 and results["downsample 2x2", "spconv"]["forward_ms"] > 0
    assert results["regular 3x3", "spconv"]["reasons"]["forward"] == "failed: TypeError: no such argument"
    monkeypatch.setattr(scatter, "subm_conv2d", broken)
    with pytest.raises(TypeError):  # a failure of ours is a bug
        run(tmp_path, "scatter")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "--steps: expected at least 1"),
        (["--batch-size", "0"], "--batch-size: expected at least 1"),
        (["--image-size", "100"], "divisible by the patch size 32"),
        (["--engines", "cuda"], "invalid choice: 'cuda'"),
    ],
)
def test_bad_input_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(argv)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["bench"], 2, "expected step, ops or data, got none"),
        (["bench", "opps"], 2, "expected step, ops or data, got opps"),
        (["bench", "--help"], 0, "usage: fcmae bench {step,ops,data}"),
        (["bench", "ops", "--channels", "many"], 2, "argument --channels: invalid int value"),
    ],
)
def test_the_command_line_knows_the_benchmarks(argv: list[str], code: int, message: str, capsys) -> None:
    assert fcmae(argv) == code
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
