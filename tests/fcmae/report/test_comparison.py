"""The verdict on pretraining follows the numbers, in words too."""

import math

import pytest
from scipy.stats import ttest_rel

from fcmae.report.comparison import compare, spread

ABOVE, BELOW = (0.84, 0.85, 0.86), (0.76, 0.75, 0.77)


def test_a_clear_gain_wins() -> None:
    found = compare(ABOVE, BELOW)
    assert found.outcome == "win"
    assert found.text.startswith("Pretraining helps: accuracy is 9.0 percentage points higher on average")


def test_a_clear_loss_is_called_one() -> None:
    found = compare(BELOW, ABOVE)
    assert found.outcome == "lose"
    assert found.text.startswith(
        "Pretraining does not win here, it hurts: accuracy is 9.0 percentage points lower"
    )


def test_a_gain_within_the_spread_is_no_win() -> None:
    found = compare((0.80, 0.86, 0.79), (0.78, 0.79, 0.80))
    assert found.outcome == "tie" and found.difference > 0
    assert "does not clearly win" in found.text and "higher in 2 of 3 seeds" in found.text


def test_a_loss_within_the_spread_is_no_loss() -> None:
    found = compare((0.78, 0.79, 0.80), (0.80, 0.86, 0.79))
    assert found.outcome == "tie"
    assert "percentage points lower on average and higher in 1 of 3 seeds" in found.text


def test_equal_arms_tie() -> None:
    found = compare(ABOVE, ABOVE)
    assert (found.outcome, found.difference, found.low, found.high) == ("tie", 0.0, 0.0, 0.0)
    assert "the same on average" in found.text


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    expected = ttest_rel(ABOVE, BELOW).confidence_interval(0.95)
    found = compare(ABOVE, BELOW)
    assert math.isclose(found.low, expected.low) and math.isclose(found.high, expected.high)


@pytest.mark.parametrize(("pretrained", "random"), [((0.8,), (0.7,)), (ABOVE, BELOW[:2])])
def test_seeds_must_pair(pretrained: tuple[float, ...], random: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected the same two or more seeds in both arms"):
        compare(pretrained, random)


def test_spread_is_between_seeds() -> None:
    assert spread([0.8]) == 0.0
    assert math.isclose(spread([0.7, 0.8, 0.9]), 0.1)
