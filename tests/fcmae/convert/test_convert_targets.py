"""The command's targets, its account of every key, and folding: each verified by running."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from fcmae import cli
from fcmae.convert import Architecture, convert_weights, load_weights, open_source
from fcmae.convert.command import convert_checkpoint
from fcmae.convert.deploy.fold import fold_layer_norm
from fcmae.convert.families import CONVNEXTV2
from fcmae.convert.files import read_checkpoint
from fcmae.convert.verify.differences import check_differences
from fcmae.errors import InputError

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
TARGETS = ("timm", "official", "transformers", "mmpretrain", "fcmae")


@pytest.fixture
def classifier() -> torch.nn.Module:
    """A small timm classifier whose every weight matters."""
    model = timm.create_model("convnextv2_tiny", num_classes=5, **SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.fixture
def weights_file(tmp_path: Path, classifier: torch.nn.Module) -> Path:
    path = tmp_path / "classifier.pth"
    torch.save({"model": classifier.state_dict()}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_verified_and_reads_back_to_the_same_weights(
    target: str, suffix: str, weights_file: Path, classifier: torch.nn.Module
) -> None:
    lines: list[str] = []
    report = convert_checkpoint(
        weights_file, weights_file.with_name(f"out{suffix}"), target=target, log=lines.append
    )
    assert report.out is not None and not report.missing and not report.dropped
    stages = [found.stage for found in report.differences]
    assert stages == ["stage 0", "stage 1", "stage 2", "stage 3", "logits", *stages[:4]]
    assert all(0 <= found.relative < 1e-5 for found in report.differences)
    engine = report.differences[0].comparison
    if target == "transformers" and importlib.util.find_spec("transformers"):
        assert engine.endswith("against transformers")
    else:
        assert "timm" in engine
    back, _ = convert_weights(open_source(report.out).weights, "timm", architecture=report.architecture)
    expected = classifier.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], expected[key]) for key in expected)


def test_one_file_as_the_original_projects_read_it(weights_file: Path) -> None:
    official = convert_checkpoint(
        weights_file, weights_file.with_name("o.pth"), target="official", log=lambda line: None
    )
    assert official.out is not None
    assert read_checkpoint(official.out)["model"]["stages.0.0.grn.gamma"].shape == (1, 1, 1, 32)


def test_default_name_tells_the_target(small_run: Path) -> None:
    report = convert_checkpoint(small_run, target="mmpretrain", verify=False, log=lambda line: None)
    assert report.out == small_run / "convnextv2_atto_mmpretrain.safetensors"
    assert "backbone.norm3.weight" in report.missing and "decoder.mask_token" in report.dropped


def test_dry_run_prints_every_key_and_writes_nothing(
    small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(small_run.rglob("*"))
    assert cli.main(["convert", str(small_run), "--target", "official", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert "mapped   encoder.stem.0.weight -> downsample_layers.0.0.weight" in lines
    assert "dropped  decoder.mask_token: only pretraining has a decoder" in lines
    assert "missing  head.weight: initialised by the classifier" in lines
    keys = read_checkpoint(small_run / "checkpoints" / "step_00000010.pt")["model"]
    assert sum(line.startswith(("mapped", "dropped")) for line in lines) == len(keys)
    assert "verify" not in printed and sorted(small_run.rglob("*")) == before
    (small_run / "convnextv2_atto_official.safetensors").touch()  # nothing is written: no --force needed
    assert cli.main(["convert", str(small_run), "--target", "official", "--dry-run"]) == 0


@pytest.mark.parametrize("target", TARGETS)
def test_folded_layer_norms_change_nothing_but_themselves(target: str, weights_file: Path) -> None:
    report = convert_checkpoint(
        weights_file, weights_file.with_name("out.pth"), target=target, fold=True, log=lambda line: None
    )
    assert len(report.folded) == 5 + 3 + 1  # blocks, downsamplings, head
    assert report.differences and max(found.relative for found in report.differences) < 1e-5
    assert report.out is not None
    folded, unfolded = open_source(report.out).ours(), open_source(weights_file).ours()
    for norm in report.folded:
        assert torch.equal(folded[f"{norm}.weight"], torch.ones_like(folded[f"{norm}.weight"]))
        assert not folded[f"{norm}.bias"].any()
    layers = [folds.format(stage=1, block=0) for folds in CONVNEXTV2.folds.values()]
    for layer in layers:
        assert not torch.equal(folded[f"{layer}.weight"], unfolded[f"{layer}.weight"])
        assert not torch.equal(folded[f"{layer}.bias"], unfolded[f"{layer}.bias"])
    touched = {f"{norm}.{p}" for norm in report.folded for p in ("weight", "bias")}
    same = [key for key in folded if torch.equal(folded[key], unfolded[key])]
    assert len(same) == len(folded) - 2 * len(touched)


def test_a_wrong_fold_fails_verification(classifier: torch.nn.Module) -> None:
    ours = open_source(classifier.state_dict()).ours()
    form = CONVNEXTV2.formats["timm"]
    folds = {"encoder.stem.1": "encoder.stages.0.blocks.0.mlp.fc1"}  # not what reads it
    wrong, done = fold_layer_norm(classifier.state_dict(), form, folds)
    assert done == ["encoder.stem.1"]
    architecture = Architecture(backbone="convnextv2_tiny", **SMALL)
    with pytest.raises(InputError, match="stage 0"):
        check_differences(CONVNEXTV2.compare(ours, wrong, form, architecture))


@pytest.mark.parametrize("target", ["official", "transformers", "mmpretrain"])
def test_converted_weights_that_changed_fail_verification(target: str, classifier: torch.nn.Module) -> None:
    ours = open_source(classifier.state_dict()).ours()
    converted, _ = convert_weights(classifier.state_dict(), target)
    form, architecture = CONVNEXTV2.formats[target], Architecture(backbone="convnextv2_tiny", **SMALL)
    check_differences(CONVNEXTV2.compare(ours, converted, form, architecture))
    for name, worst in (("encoder.stages.3.blocks.0.conv_dw.weight", "stage 3"), ("head.fc.bias", "logits")):
        key = form.from_ours(name)
        assert key is not None
        changed: dict[str, Tensor] = {**converted, key: converted[key].flip(0)}
        with pytest.raises(InputError, match=f"all visible.*(logits|{worst})"):
            check_differences(CONVNEXTV2.compare(ours, changed, form, architecture))


@pytest.mark.parametrize(
    ("sizes", "target", "told"),
    [
        ({"kernel_size": 3}, "transformers", "expected 7x7 kernels for transformers, got 3"),
        ({"stem_stride": 2}, "official", "expected a stem of stride 4 for official, got 2"),
    ],
)
def test_networks_that_the_target_cannot_build_are_refused(
    sizes: dict[str, int], target: str, told: str
) -> None:
    architecture = Architecture(backbone="convnextv2_tiny", **SMALL, **sizes)
    shapes = architecture.our_shapes(num_classes=0, decoder={})
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(InputError, match=told):
        convert_weights(weights, target)
    load_weights(architecture.create_timm(num_classes=0), convert_weights(weights, "timm")[0])


def test_unknown_target_is_refused(classifier: torch.nn.Module) -> None:
    with pytest.raises(InputError, match=r"target: expected fcmae or timm .* for ConvNeXt V2, got minkowski"):
        convert_weights(classifier.state_dict(), "minkowski")


@pytest.mark.parametrize(
    ("target", "told"),
    [("timm", "num_classes=5"), ("official", "num_classes=5"), ("transformers", "num_labels=5")],
)
def test_the_printed_line_tells_the_number_of_classes(target: str, told: str, weights_file: Path) -> None:
    lines: list[str] = []
    out = weights_file.with_name("out.pth")
    convert_checkpoint(weights_file, out, target=target, verify=False, log=lines.append)
    assert lines[-1].startswith("wrote") and lines[-1].endswith(f"{told})")


def test_an_average_beside_the_weights_is_told(weights_file: Path, classifier: torch.nn.Module) -> None:
    state = classifier.state_dict()
    torch.save({"model": state, "model_ema": state}, weights_file)
    lines: list[str] = []
    convert_checkpoint(weights_file, weights_file.with_name("o.pth"), verify=False, log=lines.append)
    assert any(line.startswith("note") and "`model_ema`: not taken" in line for line in lines)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_refuses_weights_that_it_would_round(
    dtype: torch.dtype, weights_file: Path, classifier: torch.nn.Module
) -> None:
    torch.save(classifier.to(dtype).state_dict(), weights_file)
    out = weights_file.with_name("o.pth")
    with pytest.raises(InputError, match=r"expected float32 weights, got b?float16") as caught:
        convert_checkpoint(weights_file, out, fold=True, log=lambda line: None)
    assert "\n" not in str(caught.value) and not out.exists()
    convert_checkpoint(weights_file, out, fold=True, verify=False, log=lambda line: None)
