"""Measures of agreement: shares with intervals, distance of texts, chance-corrected agreement of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import binomtest

T = TypeVar("T")
REPEATS = 1000
"""Resamples of a bootstrap."""
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where it cannot be computed (`n` is 0, or there is nothing to differ in).

    Args:
        value: the figure.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of things that it is about.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def share(part: int, n: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: `part` is not from 0 to `n`.
    """
    if n == 0 and part == 0:
        return Estimate(None, None, None, 0)
    if not 0 <= part <= n:
        raise ValueError(f"share: found {part} of {n}")
    interval = binomtest(part, n).proportion_ci(_LEVEL, method="wilson")
    return Estimate(part / n, float(interval.low), float(interval.high), n)


def distance(one: str, other: str) -> float:
    """Levenshtein's distance of two texts by the length of the longer: 0 the same, 1 nothing in common.

    Fewest insertions, deletions and replacements of single characters (Levenshtein 1966), row by row.
    """
    if one == other:
        return 0.0
    if not one or not other:
        return 1.0
    a, b = (np.array([ord(c) for c in text], dtype=np.int64) for text in (one, other))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for number, letter in enumerate(a, start=1):
        best = np.empty_like(row)
        best[0] = number
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (b != letter))
        # Insertions carry a small value to the right, one more a step.
        row = np.minimum.accumulate(best - steps) + steps
    return float(row[-1]) / max(len(a), len(b))


def mean(values: Sequence[float]) -> Estimate:
    """The mean with a percentile bootstrap interval over the values (Efron 1979; fixed seed)."""
    return bootstrap(values, lambda sample: float(np.mean(sample)))


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float | None:
    """Cohen's kappa (Cohen 1960) of two raters' labels; None where both use one and the same label throughout."""
    n = len(one)
    if n == 0:
        return None
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    first, second = Counter(one), Counter(other)
    expected = sum(first[label] * second[label] for label in first) / (n * n)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal labels (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").

    Args:
        units: for each thing that was rated the labels it got; those with fewer than two count for nothing.

    Returns:
        1 - observed by expected disagreement; None without two labels that differ.
    """
    pairable = [unit for unit in units if len(unit) > 1]
    totals = Counter(label for unit in pairable for label in unit)
    n = sum(totals.values())
    expected = n * n - sum(count * count for count in totals.values())
    if expected == 0:
        return None
    observed = 0.0
    for unit in pairable:
        size = len(unit)
        observed += (size * size - sum(count * count for count in Counter(unit).values())) / (size - 1)
    return 1 - (n - 1) * observed / expected


def bootstrap(items: Sequence[T], measure: Callable[[Sequence[T]], float | None], seed: int = 0) -> Estimate:
    """A figure over items with its percentile bootstrap interval (Efron 1979).

    Resamples for which the figure cannot be computed are left out; with fewer than two items, or with fewer than half
    of the resamples, there is no interval.

    Args:
        items: what is drawn with replacement.
        measure: the figure of some items.
        seed: of the draws; the same items give the same interval.
    """
    n = len(items)
    value = measure(items) if n else None
    if value is None or n < 2:
        return Estimate(value, None, None, n)
    draws = np.random.default_rng(seed).integers(0, n, (REPEATS, n))
    found = [figure for draw in draws.tolist() if (figure := measure([items[i] for i in draw])) is not None]
    if 2 * len(found) < REPEATS:
        return Estimate(value, None, None, n)
    low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)
