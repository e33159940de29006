"""ONNX graphs compute what the model computes, and what makes a model ready for deployment."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import nn

from fcmae import cli
from fcmae.convert.command import convert_checkpoint
from fcmae.convert.deploy.modules import Fp16SafeGrn, is_deterministic, make_grn_fp16_safe, remove_drop_path
from fcmae.convert.deploy.onnx_export import OnnxOptions, check_onnx
from fcmae.errors import InputError

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}


def model(*, num_classes: int = 5, std: float = 0.2, drop_path_rate: float = 0.0) -> nn.Module:
    made = timm.create_model(
        "convnextv2_tiny", num_classes=num_classes, drop_path_rate=drop_path_rate, **SMALL
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=std)
    return made.eval()


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(model().state_dict(), path)
    return path


def run(graph: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return torch.as_tensor(session.run(None, {"images": images.numpy()})[0])


@pytest.fixture
def _exporter() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name}: not installed")


@pytest.mark.usefixtures("_exporter")
def test_graph_of_a_classifier_runs_on_images_of_any_size(
    weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = weights_file.with_name("classifier.onnx")
    assert cli.main(["convert", str(weights_file), "--onnx", str(graph), "--fold-layer-norm"]) == 0
    printed = capsys.readouterr().out
    assert "onnxruntime against PyTorch, logits" in printed and "opset 18" in printed
    assert sorted(file.name for file in graph.parent.iterdir()) == ["classifier.onnx", "weights.pth"]
    images = torch.randn(3, 3, 96, 32)
    expected = model_of(weights_file)(images)
    assert (run(graph, images) - expected).abs().max() < 1e-4 * expected.square().mean().sqrt()


def model_of(weights_file: Path) -> nn.Module:
    made = model()
    made.load_state_dict(torch.load(weights_file, weights_only=True))
    return made.requires_grad_(False)


@pytest.mark.usefixtures("_exporter")
def test_graph_of_an_encoder_gives_features_in_float16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcmae.convert.deploy.onnx_export._PROTOBUF_LIMIT", 0)  # as if it were above 2 GiB
    path = tmp_path / "encoder.pth"
    encoder = model(num_classes=0, std=0.1)
    torch.save({k: v for k, v in encoder.state_dict().items() if not k.startswith("head.")}, path)
    onnx = OnnxOptions(
        path=tmp_path / "encoder.onnx", opset=20, float16=True, fp16_safe_grn=True, remove_drop_path=True
    )
    lines: list[str] = []
    report = convert_checkpoint(path, tmp_path / "out.pth", onnx=onnx, log=lines.append)
    assert report.differences[-1].stage == "features" and report.out is not None and report.out.exists()
    assert any("replaced 4 GRN layers" in line for line in lines)
    assert (tmp_path / "encoder.onnx.data").stat().st_size > 5000
    import onnx as library

    graph = library.load(onnx.path)
    assert graph.opset_import[0].version == 20
    assert graph.graph.input[0].type.tensor_type.elem_type == library.TensorProto.FLOAT16
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        expected = encoder.forward_features(images)  # pyright: ignore[reportCallIssue]
    assert (
        run(onnx.path, images.half()).float() - expected
    ).abs().max() < 0.02 * expected.square().mean().sqrt()


@pytest.mark.usefixtures("_exporter")
def test_graph_that_differs_is_not_written(weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = torch.zeros(2, 5)
    monkeypatch.setattr("fcmae.convert.deploy.onnx_export._run", lambda path, images: worse)
    graph = weights_file.with_name("g.onnx")
    with pytest.raises(InputError, match=r"onnx: expected outputs within 1e-04 .*nothing was written"):
        convert_checkpoint(
            weights_file,
            weights_file.with_name("out.pth"),
            onnx=OnnxOptions(path=graph),
            verify=False,
            log=lambda line: None,
        )
    assert [file.name for file in graph.parent.iterdir()] == ["weights.pth"]


def test_missing_packages_are_said(weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = OnnxOptions(path=weights_file.with_name("g.onnx"))
    with pytest.raises(InputError, match=r"got no onnx and no onnxscript\. Run: pip install"):
        convert_checkpoint(weights_file, onnx=options, log=lambda line: None)


@pytest.mark.usefixtures("_exporter")
def test_bad_options_are_one_line(weights_file: Path) -> None:
    for flags, told in (
        (["--opset", "17", "--onnx", "g.onnx"], "opset: expected at least 18, got 17"),
        (["--onnx", "g.pb"], "onnx: expected a name ending in .onnx"),
        (["--fp16-safe-grn"], "--fp16-safe-grn: expected --onnx FILE, got none"),
        (["--remove-drop-path"], "--remove-drop-path: expected --onnx FILE, got none"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            cli_main([str(weights_file), *flags])
        assert "\n" not in str(caught.value)
    graph = weights_file.with_name("taken.onnx")
    for taken in (graph.with_name("taken.onnx.data"), graph):
        taken.touch()
        with pytest.raises(InputError, match=f"existing one at {taken}. Use --force"):
            check_onnx(OnnxOptions(path=graph), force=False)
        taken.unlink()


def cli_main(arguments: list[str]) -> int:
    from fcmae.convert.command import main

    return main(arguments)


def test_drop_path_is_removed_and_training_mode_is_evaluation_mode() -> None:
    dense, images = model(drop_path_rate=0.5), torch.randn(8, 3, 64, 64)
    expected = dense(images)
    assert not is_deterministic(dense, images)
    assert remove_drop_path(dense) == 3  # the first block's rate is 0
    assert is_deterministic(dense, images) and not dense.training
    assert torch.equal(dense(images), expected)


def test_grn_with_float32_statistics_is_the_same_function() -> None:
    dense, images = model(), torch.randn(2, 3, 64, 96)
    expected = dense(images)
    assert make_grn_fp16_safe(dense) == 4 and make_grn_fp16_safe(dense) == 0
    assert (dense(images) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_grn_with_float32_statistics_survives_float16() -> None:
    grn = GlobalResponseNorm(8, channels_last=True)
    with torch.no_grad():
        grn.weight.normal_()
        grn.bias.normal_()
    x = torch.randn(1, 56, 56, 8) * 1500
    expected = grn(x)
    half, safe = grn.half(), Fp16SafeGrn(grn)
    assert not torch.isfinite(half(x.half())).all()
    assert (safe(x.half()).float() - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.usefixtures("_exporter")
def test_a_graph_that_cannot_be_written_is_one_line(weights_file: Path) -> None:
    taken = weights_file.with_name("folder.onnx")
    taken.mkdir()
    with pytest.raises(InputError, match="onnx: expected to write") as caught:
        convert_checkpoint(
            weights_file, onnx=OnnxOptions(path=taken), verify=False, force=True, log=lambda line: None
        )
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in taken.parent.iterdir()) == ["folder.onnx", "weights.pth"]
