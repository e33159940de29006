"""Two arms over the same seeds: how far apart they are, and what that allows one to say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from scipy.stats import t

CONFIDENCE = 0.95
"""Of the interval that decides."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Accuracy of pretrained weights less that of random ones, paired by seed; all values are shares."""

    difference: float
    """Mean of the paired differences."""
    low: float
    high: float
    """Ends of the interval of the mean difference (Student's t)."""
    outcome: Literal["win", "lose", "tie"]
    """Whether the interval lies above 0, below 0, or holds it."""
    text: str
    """The outcome in words, for a reader without statistics."""


def spread(values: Sequence[float]) -> float:
    """Standard deviation between seeds (n - 1); 0 for a single seed."""
    return stdev(values) if len(values) > 1 else 0.0


def compare(pretrained: Sequence[float], random: Sequence[float]) -> Comparison:
    """Judge whether pretraining helped, from one accuracy a seed and arm.

    Args:
        pretrained: Accuracy of each seed, in [0, 1].
        random: The same seeds from random weights.
    Raises:
        ValueError: fewer than two seeds, or arms of different length.
    """
    count = len(pretrained)
    if count < 2 or len(random) != count:
        raise ValueError(
            f"compare: expected the same two or more seeds in both arms, got {count} and {len(random)}. "
            "Run every seed in both arms."
        )
    differences = [a - b for a, b in zip(pretrained, random, strict=True)]
    difference = mean(differences)
    margin = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(differences) / math.sqrt(count)
    low, high = difference - margin, difference + margin
    outcome = "win" if low > 0 else "lose" if high < 0 else "tie"
    return Comparison(
        difference=difference,
        low=low,
        high=high,
        outcome=outcome,
        text=_words(differences, difference, low, high, outcome),
    )


def _words(differences: Sequence[float], difference: float, low: float, high: float, outcome: str) -> str:
    count = len(differences)
    points = f"{100 * abs(difference):.1f} percentage points"
    ahead = sum(value > 0 for value in differences)
    interval = (
        f"the {CONFIDENCE:.0%} interval of the mean difference is {100 * low:+.1f} to {100 * high:+.1f}"
    )
    if outcome == "win":
        return (
            f"Pretraining helps: accuracy is {points} higher on average, and {interval} "
            f"({count} seeds, paired)."
        )
    if outcome == "lose":
        return (
            f"Pretraining does not win here, it hurts: accuracy is {points} lower on average, and {interval} "
            f"({count} seeds, paired)."
        )
    direction = "higher" if difference > 0 else "lower"
    mean_words = f"is {points} {direction} on average" if difference else "is the same on average"
    return (
        f"Pretraining does not clearly win here: accuracy {mean_words} and higher in {ahead} of {count} "
        f"seeds, but {interval} and holds 0. These seeds do not settle it."
    )
