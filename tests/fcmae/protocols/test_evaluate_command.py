"""`fcmae evaluate`: every backbone and checkpoint into one table, whose cells are scikit-learn's numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_runs import MODELS, RUN, save_run
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from fcmae import cli
from fcmae.config import (
    DataConfig,
    EvaluateConfig,
    LowShotConfig,
)
from fcmae.convert import convert_weights
from fcmae.data import eval_transform, evaluation_batches
from fcmae.errors import InputError
from fcmae.evaluation.encoders import load_encoder
from fcmae.evaluation.features import open_split
from fcmae.evaluation.frozen.knn import embed_images
from fcmae.evaluation.frozen.score import shuffle_labels
from fcmae.methods import MSN
from fcmae.models import create_backbone
from fcmae.protocols.evaluate import evaluate


def config_for(data: DataConfig, tmp_path: Path, **options) -> EvaluateConfig:
    lowshot = LowShotConfig(per_class=(1, 2), percent=20.0)
    return EvaluateConfig(data=data, lowshot=lowshot, cache=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("name", MODELS)
def test_every_backbone_gives_its_own_features(name: str, folder_data: DataConfig, tmp_path: Path):
    method = save_run(tmp_path / name, MODELS[name], folder_data)
    encoder = method.target_encoder if isinstance(method, MSN) else method.encoder
    loaded = load_encoder(tmp_path / name, in_chans=3)
    split = open_split(folder_data, "val")
    batches = list(evaluation_batches(split.dataset, eval_transform(folder_data), batch_size=3, workers=0))
    found, expected = (embed_images(network, batches)[0] for network in (loaded.encoder, encoder))
    torch.testing.assert_close(found, expected)
    assert expected.std(dim=0).min() > 0  # images differ, so equality says something
    table = evaluate(config_for(folder_data, tmp_path, random=True), [str(tmp_path / name)], log=lambda _: 0)
    assert [cell.protocol for cell in table.cells] == ["k-NN", "probe", "1 a class", "2 a class", "20 %"] * 2
    assert {cell.encoder for cell in table.cells} == {
        str(tmp_path / name),
        f"random {MODELS[name].backbone}",
    }


def test_cells_are_those_of_scikit_learn(folder_data: DataConfig, tmp_path: Path):
    save_run(tmp_path / "run", MODELS["convnextv2"], folder_data)
    config = config_for(folder_data, tmp_path, shuffled=True)
    table = evaluate(config, [str(tmp_path / "run")], log=lambda _: 0)
    found = {(cell.labels, cell.protocol): cell for cell in table.cells}

    encoder = load_encoder(tmp_path / "run", in_chans=3).encoder
    sets = {}
    for name in ("train", "val"):
        split = open_split(folder_data, name)
        batches = evaluation_batches(split.dataset, eval_transform(folder_data), batch_size=64, workers=0)
        features, labels = (tensor.numpy() for tensor in embed_images(encoder, batches))
        sets[name] = (features.astype(np.float64), labels, split)
    train, train_labels, split = sets["train"]
    val, val_labels, _ = sets["val"]
    mean, deviation = train.mean(0), train.std(0)

    def rows(features: np.ndarray) -> np.ndarray:
        features = features - features.mean(1, keepdims=True)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    for labels in ("true", "shuffled"):

        def learnt(given: np.ndarray, labels: str = labels) -> np.ndarray:
            return given if labels == "true" else shuffle_labels(torch.from_numpy(given), seed=0).numpy()

        neighbours = KNeighborsClassifier(
            min(20, len(train)),
            metric="cosine",
            algorithm="brute",
            weights=lambda distance: np.exp((1 - distance) / 0.07),
        ).fit(train, learnt(train_labels))
        assert found[labels, "k-NN"].accuracy == neighbours.score(val, val_labels)
        probe = LogisticRegression(max_iter=2000).fit((train - mean) / deviation, learnt(train_labels))
        assert found[labels, "probe"].accuracy == probe.score((val - mean) / deviation, val_labels)
        for size, stem, penalty in (("2 a class", "2imgs", 0.0025), ("20 %", "20percent", 0.075)):
            scores = []
            for path in sorted((tmp_path / "cache" / "splits" / split.key).glob(f"{stem}_*.txt")):
                chosen = [split.names.index(line) for line in path.read_text().splitlines()[1:]]
                few = LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=9999, tol=1e-8)
                few.fit(rows(train[chosen]), learnt(train_labels[chosen]))
                scores.append(few.score(rows(val), val_labels))
            cell = found[labels, size]
            assert len(scores) == 3 and cell.accuracy == pytest.approx(np.mean(scores), abs=1e-12)
            assert cell.spread == pytest.approx(np.std(scores, ddof=1), abs=1e-12)


def test_random_weights_of_two_networks_have_a_row_each(folder_data: DataConfig, tmp_path: Path):
    for name, gating in (("grn", "grn"), ("se", "se")):
        save_run(tmp_path / name, replace(MODELS["convnextv2"], gating=gating), folder_data)
    config = config_for(folder_data, tmp_path, random=True, protocols="knn")
    table = evaluate(config, [str(tmp_path / name) for name in ("grn", "se")], log=lambda _: 0)
    names = [cell.encoder for cell in table.cells]
    assert len(set(names)) == 4 and names[2].endswith(f" as {tmp_path / 'grn'}")
    assert table.text().count("\nrandom ") == 2


def test_other_formats_give_the_same_row(folder_data: DataConfig, tmp_path: Path):
    method = save_run(tmp_path / "run", MODELS["convnextv2"], folder_data)
    ours = {name: tensor for name, tensor in method.state_dict().items() if name.startswith("encoder.")}
    for target in ("timm", "transformers", "mmpretrain"):
        torch.save({"state_dict": convert_weights(ours, target)[0]}, tmp_path / f"{target}.pth")
    paths = [str(tmp_path / name) for name in ("run", "timm.pth", "transformers.pth", "mmpretrain.pth")]
    table = evaluate(config_for(folder_data, tmp_path, protocols="knn"), paths, log=lambda _: 0)
    assert [cell.encoder for cell in table.cells] == paths
    first, *others = (load_encoder(path, in_chans=3).encoder.state_dict() for path in paths)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first | other)
    assert len({cell.accuracy for cell in table.cells}) == 1


@pytest.mark.parametrize("name", ["vit", "convmae"])
def test_classifiers_of_averaged_patches_keep_their_norm(name: str, folder_data: DataConfig, tmp_path: Path):
    method = save_run(tmp_path / "run", MODELS[name], folder_data)
    encoder, dim = method.encoder, method.encoder.dims[-1]
    norm = torch.nn.LayerNorm(dim, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    weights = {key: tensor for key, tensor in encoder.state_dict().items() if not key.startswith("norm.")}
    weights |= {f"fc_norm.{key}": tensor for key, tensor in norm.state_dict().items()}
    weights |= {"head.weight": torch.randn(3, dim), "head.bias": torch.randn(3)}
    torch.save(weights, tmp_path / "classifier.pth")
    loaded = load_encoder(tmp_path / "classifier.pth", in_chans=3, num_heads=2)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        encoder.set_submodule("norm", torch.nn.Identity())
        expected = norm(encoder.eval()(images)[-1].mean(dim=(1, 2)))
        torch.testing.assert_close(loaded.encoder.embed(images), expected)


def test_learnt_positions_of_a_small_grid_are_used_as_they_are(tmp_path: Path):
    options = {"depths": (1,), "dims": (8,), "num_heads": 2, "positions": "learnt"}
    encoder = create_backbone("vit_tiny_patch8", **options).eval()
    encoder.set_image_size((32, 32))
    torch.nn.init.normal_(encoder.pos_embed)
    torch.save(encoder.state_dict(), tmp_path / "vit.pth")
    loaded = load_encoder(tmp_path / "vit.pth", in_chans=3, num_heads=2)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder.embed(images), encoder.embed(images))


def test_unreadable_images_shift_no_label_and_are_missed_in_a_list(folder_data: DataConfig, tmp_path: Path):
    save_run(tmp_path / "run", MODELS["convnextv2"], folder_data)
    config = config_for(folder_data, tmp_path, protocols="lowshot")
    twice = [str(tmp_path / "run")] * 2
    whole = evaluate(config, twice, log=lambda _: 0)
    assert [cell.protocol for cell in whole.cells] == ["1 a class", "2 a class", "20 %"]

    split = open_split(folder_data, "train")
    lists = [path.read_text() for path in (tmp_path / "cache" / "splits" / split.key).iterdir()]
    listed = [name in "".join(lists) for name in split.names]
    assert not all(listed)
    Path(split.dataset.name_of(listed.index(False))).write_bytes(b"no image")  # before some that are listed
    assert any(listed[listed.index(False) :])
    again = evaluate(config, twice, log=lambda _: 0)
    assert [cell.accuracy for cell in again.cells] == [cell.accuracy for cell in whole.cells]

    missing = split.names[listed.index(True)]
    Path(split.dataset.name_of(listed.index(True))).write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"lowshot.splits: expected readable images, got .*: {missing}\."):
        evaluate(config, twice, log=lambda _: 0)


def test_command_prints_and_writes_the_table(folder_data: DataConfig, tmp_path: Path, capsys):
    save_run(tmp_path / "run", MODELS["convnextv2"], folder_data)
    argv = [
        "--data.source=folder",
        f"--data.root={folder_data.root}",
        "--data.image_size=32",
        "--data.workers=0",
        "--data.val_fraction=0.25",
        f"--cache={tmp_path / 'cache'}",
        f"--json={tmp_path / 'out' / 'table.json'}",
    ]
    run = str(tmp_path / "run")
    assert cli.main(["evaluate", run, "--protocols=probe,knn", *argv]) == 0
    text = capsys.readouterr().out
    assert f"on 6 validation images of {folder_data.root} at 32 x 32 pixels, 3 classes (chance 33.3" in text
    assert "18 training images" in text and "\nk-NN: 18 neighbours by cosine" in text
    written = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [cell["protocol"] for cell in written["cells"]] == ["probe", "k-NN"]
    cell = written["cells"][0]
    assert (
        cell["train_images"] == 18 and cell["val_images"] == 6 and cell["file"].endswith("step_00000001.pt")
    )
    assert f"{100 * cell['accuracy']:.1f}" in text
    for command in ("knn", "probe", "lowshot"):
        shots = ["--lowshot.per_class=[1]", "--lowshot.percent=null"]
        assert cli.main([command, run, *argv, *shots]) == 0
        written = json.loads((tmp_path / "out" / "table.json").read_text())
        assert len(written["cells"]) == 1


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "expected checkpoints before the options, got none"),
        (["absent.pt"], "got nothing at absent.pt"),
        (
            [RUN, "--protocols=knn,prob"],
            "protocols: expected some of knn,probe,lowshot,partial,finetune, got knn,prob.",
        ),
        ([RUN, "--protocls=knn"], "The nearest is protocols."),
        ([RUN, "--device=gpu0"], "device: expected one of this machine's, got gpu0"),
        ([RUN, "--knn.neighbours=0"], "knn.neighbours: expected at least 1, got 0."),
        ([RUN, "--data.source=folder"], "Add --data.root DIR."),
    ],
)
def test_mistakes_are_one_line(argv: list[str], part: str, folder_data: DataConfig, tmp_path: Path, capsys):
    if RUN in argv:
        save_run(tmp_path / RUN, MODELS["vit"], folder_data)
        argv = [str(tmp_path / RUN), "--data.source=digits", *argv[1:]]
    assert cli.main(["evaluate", *argv]) == 2
    output = capsys.readouterr()
    assert part in output.err and output.err.count("\n") == 1 and output.out == ""


def test_short_names_refuse_other_protocols(capsys):
    assert cli.main(["knn", "run", "--protocols=probe"]) == 2
    assert "protocols: expected none for fcmae knn. Use fcmae evaluate." in capsys.readouterr().err


def test_other_channels_and_unknown_heads_are_refused(folder_data: DataConfig, tmp_path: Path, capsys):
    method = save_run(tmp_path / "run", MODELS["vit"], folder_data)
    digits = "--data.source=digits"
    assert cli.main(["knn", str(tmp_path / "run"), digits, "--data.in_chans=1"]) == 2
    assert "got 1. Set --data.in_chans=3." in capsys.readouterr().err
    torch.save(method.encoder.state_dict(), tmp_path / "bare.pth")
    assert cli.main(["knn", str(tmp_path / "bare.pth")]) == 2
    assert capsys.readouterr().err.endswith("Set --num_heads=N.\n")
