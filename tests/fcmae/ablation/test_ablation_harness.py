"""The harness around the training: its order, its stops, its arithmetic and what it refuses to read."""

import json
from pathlib import Path
from statistics import mean

import pytest
from ablation_runs import SPEC, Scripted, write_spec

from fcmae import cli
from fcmae.ablation import harness
from fcmae.ablation.harness import run_ablation
from fcmae.ablation.results import collect, expected_shares
from fcmae.ablation.spec import load_spec
from fcmae.config import DataConfig, FCMAEConfig, MAEConfig, PretrainConfig
from fcmae.errors import InputError

EQUAL = SPEC + "equal: {arms: [sparse, leaky], steps: 3, tolerance: 1e-4}\n"
FLAT = [0.5, 0.4, 0.3, 0.2]


@pytest.mark.parametrize(
    ("step", "apart", "holds"), [(3, 2e-4, False), (1, -2e-4, False), (4, 2e-4, True), (2, 0.9e-4, True)]
)
def test_losses_that_differ_too_much_are_told(tmp_path: Path, step: int, apart: float, holds: bool) -> None:
    """Over the first three steps only, with either sign, in one seed of two."""
    other = [loss + apart * (at == step) for at, loss in enumerate(FLAT, start=1)]
    runs = {("sparse", 0): FLAT, ("leaky", 0): FLAT, ("sparse", 1): FLAT, ("leaky", 1): other}
    out = tmp_path / "out"
    result = run_ablation(write_spec(tmp_path, EQUAL), out=out, execute=Scripted(runs))
    assert result.agreement is not None and result.agreement.holds is holds
    assert result.agreement.worst[0] == 0
    assert json.loads((out / "results.json").read_text())["agreement_holds"] is holds
    page = (out / "report.html").read_text()
    assert ("sparse and leaky DISAGREE in loss" in page) is not holds
    assert ("sparse and leaky agree in loss" in page) is holds


def test_equal_arms_need_every_loss(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, EQUAL + "changes: {train.log_every: 2}\n")
    with pytest.raises(InputError, match=r"expected train\.log_every of 1"):
        run_ablation(spec, out=tmp_path / "out", execute=Scripted({}))


def test_seeds_go_round_and_a_stop_ends_it(tmp_path: Path) -> None:
    runs = {("sparse", 0): FLAT, ("leaky", 0): FLAT, ("sparse", 1): 75, ("leaky", 1): FLAT}
    execute = Scripted(runs)
    result = run_ablation(write_spec(tmp_path), out=tmp_path / "out", execute=execute)
    places = [Path(call[-1]).parts[-3:-1] for call in execute.calls]
    assert places == [("sparse", "seed_0"), ("leaky", "seed_0"), ("sparse", "seed_1")]
    assert [run.state for run in result.runs] == ["done", "unfinished", "done", "unfinished"]


def test_a_run_s_numbers_are_those_of_its_log(tmp_path: Path) -> None:
    losses = [1 - at / 100 for at in range(30)]
    runs = {(arm, seed): losses for arm in ("sparse", "leaky") for seed in (0, 1)}
    result = run_ablation(write_spec(tmp_path), out=tmp_path / "out", execute=Scripted(runs))
    run = result.runs[0]
    assert run.metrics == {"loss": mean(losses[-3:])}
    assert run.step_seconds == 4 / 16 * 0.75  # of the configuration: 4 images a step
    assert (run.data_wait, run.peak_memory_mb, run.parameters) == (0.25, 500.0, 1000)


@pytest.mark.parametrize(("reason", "code"), [("no space. Free some.", 2), (-9, 1)])
def test_the_command_tells_failures_by_its_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: str | int,
    code: int,
) -> None:
    write_spec(tmp_path, SPEC.replace("[0, 1]", "[0]"))
    execute = Scripted({("sparse", 0): reason, ("leaky", 0): FLAT})
    monkeypatch.setattr("fcmae.ablation.processes.Processes.__call__", lambda self, *rest: execute(*rest))
    arguments = ["ablate", "--config", str(tmp_path / "spec.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    shown = capsys.readouterr().out
    assert (
        "failed: pretrain: no space. Free some." in shown or "failed: pretrain: killed by signal 9" in shown
    )
    assert "3/30" not in shown and "leaky" in shown
    execute.losses["sparse", 0] = FLAT
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--dry-run", "--train.steps=5"]) == 2
    assert "train.steps = 4 (wanted: 5)" in capsys.readouterr().err
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        "sparse, seed 0 (the base): done\nleaky, seed 0 (model.execution=leaky_dense): done\n"
    )
    assert cli.main([*arguments, "--dry-run", "--arms", "leaky", "--out", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == "leaky, seed 0 (model.execution=leaky_dense): pretrain\n"
    assert cli.main([*arguments, "--dry-run", "leaky"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds: [0, 1]", "seeds: [0, 0]"), "expected each of seeds once"),
        (("seeds: [0, 1]", "seeds: [a]"), "expected integers in seeds, got a"),
        (("seeds: [0, 1]", "seeds: 3"), "expected a list in seeds"),
        (("[loss]", "[accuracy]"), "lowshot_1percent, finetune, got accuracy"),
        (("[loss]", "[finetune]"), "expected `finetune: FILE`"),
        (("title:", "titel:"), "got titel"),
        (("base: base.yaml\n", ""), "got no base"),
        (("leaky:", "sparse:"), "expected each key once, got sparse again"),
        (("leaky:", "../leaky:"), "expected an arm's name"),
        (("leaky:", "scans:"), "expected an arm's name"),
        (("model.execution: leaky_dense", "model: {execution: leaky_dense}"), "got the section model"),
        (("model.execution: leaky_dense", "train.seed: 3"), "the harness sets it"),
        (("metrics:", "hold_out: 1.5\nmetrics:"), "hold_out: expected a value in (0, 0.9], got 1.5"),
        (("metrics:", "hold_out: some\nmetrics:"), "expected a number in hold_out, got some"),
        (("metrics:", "hold_out: 0.3\nchanges: {data.root: x}\nmetrics:"), "expected no data.root beside"),
        (("metrics:", "equal: {arms: [sparse, none], steps: 1, tolerance: 0}\nmetrics:"), "equal.arms"),
        (("metrics:", "equal: {arms: [sparse, leaky]}\nmetrics:"), "expected arms, steps, tolerance"),
    ],
)
def test_a_file_s_mistakes_are_one_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        write_spec(tmp_path, SPEC.replace(*change))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("leaky_dense", "leaking"), "arm leaky: model.execution: expected sparse or masked_dense"),
        (("model.execution", "model.exection"), "The nearest is model.execution"),
        (("base.yaml", "none.yaml"), "none.yaml"),
    ],
)
def test_an_arm_that_is_no_configuration_stops_before_the_first_run(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    spec = write_spec(tmp_path, SPEC.replace(*change))
    with pytest.raises(InputError) as refused:
        run_ablation(spec, out=tmp_path / "out", execute=Scripted({}))
    assert message in str(refused.value) and not (tmp_path / "out").exists()


def test_arms_override_what_all_share_and_options_come_between(tmp_path: Path) -> None:
    write_spec(
        tmp_path, SPEC + "changes: {train.steps: 7, train.betas: [0.8, 0.9], model.execution: sparse}\n"
    )
    spec = load_spec(tmp_path / "spec.yaml", {"train.steps": "9"})
    config = spec.pretrain_config("leaky", seed=1, out=tmp_path)
    assert (config.train.steps, config.train.betas, config.train.seed) == (9, (0.8, 0.9), 1)
    assert isinstance(config.model, FCMAEConfig) and config.model.execution == "leaky_dense"
    assert config.run.dir == str(tmp_path / "leaky" / "seed_1") and config.run.accelerator == "cpu"


def test_damaged_scores_are_one_line(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    scores = tmp_path / "out" / "sparse" / "seed_0" / "scores.json"
    scores.parent.mkdir(parents=True)
    for text in ('{"knn": 0.', "[]", "\0\0"):
        scores.write_text(text)
        with pytest.raises(InputError, match=r"scores\.json, which fcmae wrote, got a damaged file"):
            collect(spec, tmp_path / "out")


def test_unknown_arms_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--arms: expected of sparse, leaky, got dense"):
        run_ablation(write_spec(tmp_path), out=tmp_path / "out", execute=Scripted({}), arms=["dense"])


def test_what_a_step_should_cost() -> None:
    """Atto at 128 px and mask 0.6 sees 6 of 16 cells; the decoder's share keeps the arithmetic above that."""
    config = PretrainConfig(
        data=DataConfig(source="digits", image_size=128, in_chans=1),
        model=FCMAEConfig(backbone="convnextv2_atto", decoder_dim=128),
    )
    shares = expected_shares(config)
    assert shares is not None and shares[1] is not None
    assert shares[0] == 6 / 16 < shares[1] < 0.45
    wide = PretrainConfig(data=config.data, model=FCMAEConfig(backbone="convnextv2_atto", decoder_dim=512))
    wider = expected_shares(wide)
    assert wider is not None and wider[1] is not None and wider[1] > shares[1]
    assert expected_shares(PretrainConfig(data=config.data, model=MAEConfig())) is None
    own = PretrainConfig(data=config.data, model=FCMAEConfig(backbone="convnextv2_atto", depths=(1, 1, 1, 1)))
    assert expected_shares(own) == (6 / 16, None)


def test_the_order_of_stages_is_that_of_the_run(tmp_path: Path) -> None:
    text = SPEC.replace("[loss]", "[knn, loss, probe]")
    names = [stage.name for stage in harness.stages(write_spec(tmp_path, text), "leaky", 0, out=tmp_path)]
    assert names == ["pretrain", "score"]
