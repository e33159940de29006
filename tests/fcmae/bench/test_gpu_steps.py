"""Comparisons of whole steps with arms that only pretend: batch, parity, time, ratios."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from fcmae.bench.floors import Rates
from fcmae.bench.gpu.arms import ArmError, ArmSpec, OutOfMemoryError, TimeEndedError
from fcmae.bench.gpu.steps import (
    ARMS,
    StepCase,
    StepSettings,
    disagreements,
    measure_case,
    planned_cases,
    ratios_of,
)

CASE = StepCase(
    backbone="convnextv2_tiny", mask_ratio=0.6, compiled=True, arms=("sparse", "masked_dense", "mae")
)
SETTINGS = StepSettings(batch_size=256, rounds=3, steps=2)
RATES = Rates(copy=4e12, matrix=8e14, vector=6e13)
GIB = 2**30


class FakeArm:
    """An arm whose answers follow from its spec."""

    seconds = {"sparse": 0.010, "masked_dense": 0.025, "mae": 0.020}  # noqa: RUF012

    def __init__(self, spec: ArmSpec, log: list[str], refuse: Callable[[ArmSpec, str], None]) -> None:
        self.spec, self.log, self.refuse = spec, log, refuse
        self.closed = False
        log.append(f"start {spec.name} {spec.step.batch_size}")

    def ready(self, until: float) -> dict[str, Any]:
        self.refuse(self.spec, "ready")
        loss = 3.0 if self.spec.name == "mae" else 1.0
        return {"loss": loss, "grad_norm": 0.5, "parameters": 1000, "state_bytes": 0}

    def turn(self, steps: int, until: float) -> dict[str, Any]:
        assert not self.closed
        self.refuse(self.spec, "turn")
        self.log.append(f"turn {self.spec.name}")
        seconds = self.seconds[self.spec.name]
        return {"seconds": [seconds] * steps, "peak_bytes": round(1000 * seconds) * GIB}

    def close(self) -> None:
        self.closed = True


def measure(
    refuse: Callable[[ArmSpec, str], None] = lambda spec, moment: None,
    *,
    case: StepCase = CASE,
    rates: Rates | None = RATES,
) -> tuple[dict[str, Any], list[str], list[FakeArm]]:
    log: list[str] = []
    arms: list[FakeArm] = []

    def start(spec: ArmSpec) -> FakeArm:
        arms.append(FakeArm(spec, log, refuse))
        return arms[-1]

    return measure_case(case, SETTINGS, start=start, until=math.inf, rates=rates), log, arms


def test_arms_take_turns_and_share_the_batch() -> None:
    result, log, arms = measure()
    assert log == [f"start {name} 256" for name in CASE.arms] + [f"turn {name}" for name in CASE.arms] * 3
    assert result["batch_size"] == 256 and result["out_of_memory"] == []
    assert all(arm.closed for arm in arms)
    sparse = result["arms"]["sparse"]
    assert len(sparse["turns"]) == 3 and sparse["median_ms"] == 10 and sparse["images_per_second"] == 25600
    assert sparse["peak_bytes"] == 10 * GIB


def test_ratios_and_floors() -> None:
    result, _, _ = measure()
    ratios = {(r["arm"], r["to"]): r for r in result["ratios"]}
    assert ratios.keys() == {("sparse", "masked_dense"), ("sparse", "mae")}
    assert ratios["sparse", "masked_dense"]["time"] == pytest.approx(0.4)
    assert ratios["sparse", "masked_dense"]["memory"] == pytest.approx(0.4)
    assert ratios["sparse", "mae"]["time"] == pytest.approx(0.5)
    sparse, dense, mae = (result["arms"][name] for name in CASE.arms)
    assert 0.38 < sparse["floor_ms"] / dense["floor_ms"] < 0.45 and "floor_ms" not in mae
    assert sparse["floor_ms"] >= max(sparse["floor_gemm_ms"], sparse["floor_bytes_ms"])
    assert "floor_ms" not in measure(rates=None)[0]["arms"]["sparse"]


def test_ratio_is_that_of_neighbouring_turns() -> None:
    def figures(*seconds: float) -> dict[str, Any]:
        return {"turns": [{"seconds": [s], "peak_bytes": 1} for s in seconds], "peak_bytes": 1}

    (ratio,) = ratios_of({"sparse": figures(1, 2, 30), "masked_dense": figures(2, 4, 40)})
    assert ratio["time"] == 0.5 and ratio["time_range"] == [0.5, 0.75]


def test_memory_that_ends_halves_the_batch_of_every_arm() -> None:
    def refuse(spec: ArmSpec, moment: str) -> None:
        if spec.name == "masked_dense" and spec.step.batch_size > 64 and moment == "turn":
            raise OutOfMemoryError(f"{spec.name}: out of memory")

    result, log, arms = measure(refuse)
    assert result["batch_size"] == 64
    assert result["out_of_memory"] == [f"masked_dense: out of memory at batch {size}" for size in (256, 128)]
    assert {arm.spec.step.batch_size for arm in arms[-3:]} == {64}
    assert result["arms"]["sparse"]["images_per_second"] == 6400
    assert all(arm.closed for arm in arms)
    # Side by side first; then one after another, as the memory may have been the neighbours'.
    assert log.count("start sparse 256") == 2 and log.count("start sparse 128") == 1


def test_neighbours_memory_is_not_taken_for_the_arms_own() -> None:
    starts = []

    def refuse(spec: ArmSpec, moment: str) -> None:
        starts.append((spec.name, moment))
        if moment == "ready" and starts.count(("sparse", "ready")) == 1:
            raise OutOfMemoryError(f"{spec.name}: out of memory")

    result, _, _ = measure(refuse)
    assert result["batch_size"] == 256 and result["out_of_memory"] == []


def test_memory_that_never_suffices_is_said() -> None:
    def refuse(spec: ArmSpec, moment: str) -> None:
        raise OutOfMemoryError(f"{spec.name}: out of memory")

    result, _, _ = measure(refuse)
    assert result["batch_size"] == 0 and len(result["out_of_memory"]) == 9  # 256, 128, ... 1
    assert all("out of memory" in figures["failed"] for figures in result["arms"].values())


@pytest.mark.parametrize("error", [ArmError, TimeEndedError])
@pytest.mark.parametrize("moment", ["ready", "turn"])
def test_an_arm_that_fails_leaves_the_others(error: type[RuntimeError], moment: str) -> None:
    def refuse(spec: ArmSpec, at: str) -> None:
        if spec.name == "masked_dense" and at == moment:
            raise error("masked_dense: why")

    result, _, _ = measure(refuse)
    assert result["arms"]["masked_dense"] == {"failed": "masked_dense: why"}
    assert result["arms"]["sparse"]["median_ms"] == 10
    assert [ratio["to"] for ratio in result["ratios"]] == ["mae"]


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
@pytest.mark.parametrize("wrong", [1.2, 0.8, math.nan])
def test_arms_that_differ_are_not_timed(what: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FakeArm.ready

    def ready(self: FakeArm, until: float) -> dict[str, Any]:
        facts = original(self, until)
        return facts | ({what: facts[what] * wrong} if self.spec.name == "sparse" else {})

    monkeypatch.setattr(FakeArm, "ready", ready)
    result, log, _ = measure()
    assert not [line for line in log if line in ("turn sparse", "turn masked_dense")]
    assert f"{what} of equal arms differs" in result["arms"]["sparse"]["failed"]
    assert result["arms"]["mae"]["median_ms"] == 20


def test_equal_arms_within_rounding_are_timed() -> None:
    facts = {"loss": 1.0, "grad_norm": 1.0}
    close = {"loss": 1.01, "grad_norm": 1.02}
    arms = {"sparse": close, "masked_dense": facts, "mae": {"loss": 9.0, "grad_norm": 9.0}}
    assert disagreements(arms, "bf16") == {}
    assert disagreements(arms, "fp32").keys() == {"sparse", "masked_dense"}
    assert disagreements({"mae": facts, "sparse": {"failed": "why"}}, "bf16") == {}


def test_cases_come_in_order_of_importance_and_cover_the_grid() -> None:
    cases = planned_cases()
    assert [case.name for case in cases[:5]] == [
        "convnextv2_base 0.6 compiled",
        "convnextv2_tiny 0.6 compiled",
        "convnextv2_base 0.75 compiled",
        "convnextv2_base 0.6 eager",
        "convnextv2_large 0.6 compiled",
    ]
    assert "mae" in cases[0].arms
    grid = {(case.backbone, case.mask_ratio, case.compiled) for case in cases}
    assert len(cases) == len(grid) == 3 * 5 * 2
    assert all({"sparse", "masked_dense"} <= set(case.arms) <= set(ARMS) for case in cases)
