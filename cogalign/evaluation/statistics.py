"""Confidence intervals and paired tests; all resampling is scipy's.

Images of one patient or video are not independent, so the unit that is resampled is the group.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Interval = tuple[float, float]
Floats = NDArray[np.float64]

BATCH_NUMBERS = 4_000_000
"""At most so many resampled numbers are held in memory at once."""
FLIPS = 9999
"""Sign flips of a test, where not all of them can be done."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), by `scipy.stats.binomtest`."""
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def group_sums(values: ArrayLike, groups: Sequence[str] | None = None) -> tuple[Floats, Floats]:
    """Sum and number of `values` in each group, both of shape (groups,); without groups each value is its own.

    Raises:
        ValueError: `groups` has another length than `values`.
    """
    array = np.asarray(values, dtype=np.float64)
    if groups is None:
        return array, np.ones(len(array))
    if len(groups) != len(array):
        raise ValueError(f"groups: found {len(groups)}, wanted one for each of the {len(array)} values")
    if len(array) == 0:
        return array, array
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.bincount(index, weights=array).astype(np.float64), np.bincount(index).astype(np.float64)


def _ratio(sums: Floats, counts: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.sum(sums, axis=axis) / np.sum(counts, axis=axis))


def bootstrap_interval(
    data: Sequence[ArrayLike],
    statistic: Callable[..., Any],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    method: str = "BCa",
    row_numbers: int = 1,
) -> Interval | None:
    """Bootstrap interval of `statistic(*data, axis)` over paired units (`scipy.stats.bootstrap`).

    Args:
        data: arrays of one length, a unit (group) an entry; they are resampled together.
        statistic: takes the resampled arrays and `axis`, works on many resamples at once.
        resamples: number of resamples.
        confidence: coverage of the interval.
        seed: seed of the resampling.
        method: `BCa` (Efron 1987) or `percentile`; BCa falls back on percentile where it is not defined.
        row_numbers: how many numbers the statistic holds for one unit (bounds the memory).

    Returns:
        None where the resamples do not vary, so that they say nothing of the uncertainty.
    """
    units = len(np.asarray(data[0]))
    batch = max(1, BATCH_NUMBERS // max(1, units * row_numbers))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name in dict.fromkeys((method, "percentile")):
            result = stats.bootstrap(
                tuple(data), statistic, paired=True, vectorized=True, n_resamples=resamples, batch=batch,
                confidence_level=confidence, method=name, rng=np.random.default_rng(seed),
            )  # fmt: skip
            distribution = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
            if len(distribution) == 0 or math.isclose(np.ptp(distribution), 0, abs_tol=1e-12):
                return None
            low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
            if math.isfinite(low) and math.isfinite(high):
                return low, high
    quantiles = np.quantile(distribution, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(quantiles[0]), float(quantiles[1])


def _wilson_of_mean(mean: float, units: int, confidence: float) -> Interval:
    """Wilson's interval for a mean of values in [0, 1]: no such value varies more than a coin of the same mean."""
    successes = mean * units
    floor, ceil = math.floor(successes + 1e-9), math.ceil(successes - 1e-9)
    return wilson(floor, units, confidence)[0], wilson(ceil, units, confidence)[1]


def mean_interval(
    values: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of the mean of values in [0, 1], resampling groups (cluster bootstrap, BCa).

    Where all groups have the same mean (all right, all wrong, one group) the bootstrap would give an
    interval of width zero; then it is Wilson's with the number of groups as n.

    Returns:
        (low, high), which hold the mean; None for no values.
    """
    sums, counts = group_sums(values, groups)
    if len(sums) == 0:
        return None
    mean = float(_ratio(sums, counts))
    found = None
    if len(sums) > 1 and np.ptp(sums / counts) > 1e-12:
        found = bootstrap_interval((sums, counts), _ratio, resamples=resamples, confidence=confidence, seed=seed)
    low, high = found or _wilson_of_mean(mean, len(sums), confidence)
    return max(0.0, min(low, mean)), min(1.0, max(high, mean))


def difference_interval(
    differences: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of the mean of paired differences in [-1, 1], resampling groups (cluster bootstrap, BCa).

    Where no group differs from another the interval is Wilson's: around 0 the share of pairs that
    change is at most Wilson's upper bound of 0 in n, in either direction.
    """
    sums, counts = group_sums(differences, groups)
    if len(sums) == 0:
        return None
    mean = float(_ratio(sums, counts))
    found = None
    if len(sums) > 1 and np.ptp(sums / counts) > 1e-12:
        found = bootstrap_interval((sums, counts), _ratio, resamples=resamples, confidence=confidence, seed=seed)
    if found is None:
        low, high = _wilson_of_mean(abs(mean), len(sums), confidence)
        found = (-high, high) if mean == 0 else (low, high) if mean > 0 else (-high, -low)
    return max(-1.0, min(found[0], mean)), min(1.0, max(found[1], mean))


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same cases: how many more does the second get right?"""

    difference: float
    """Accuracy of the second model minus that of the first."""
    difference_ci: Interval
    only_first: int
    """Cases that only the first model gets right."""
    only_second: int
    """Cases that only the second model gets right."""
    p_value: float
    """Two-sided."""
    test: str
    """`mcnemar_exact`, or `sign_flip_permutation` over groups where groups repeat."""
    n: int


def compare_paired(
    first: ArrayLike,
    second: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models case by case; `first` and `second` say for each case whether it was right.

    McNemar's exact test (a binomial test on the cases on which only one is right) takes cases as independent. Where
    groups repeat, the differences of whole groups are tested by flipping their signs (`scipy.stats.permutation_test`).

    Raises:
        ValueError: the two have different lengths, or no cases.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"paired comparison: found {a.size} and {b.size} cases, wanted the same cases, at least one")
    only_first, only_second, p_value = mcnemar(a, b)
    test = "mcnemar_exact"
    differences = b.astype(np.float64) - a.astype(np.float64)
    sums, _ = group_sums(differences, groups)
    if len(sums) != len(a):
        test, p_value = "sign_flip_permutation", sign_flip(sums, seed)
    interval = difference_interval(differences, groups, resamples=resamples, confidence=confidence, seed=seed)
    assert interval is not None  # there is at least one case
    return PairedComparison(float(differences.mean()), interval, only_first, only_second, p_value, test, int(a.size))


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """McNemar's exact test of two models on the same cases: cases that only the first or second gets right, and p."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    differ = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_second, differ).pvalue) if differ else 1.0


def sign_flip(sums: Floats, seed: int = 0) -> float:
    """Two-sided p-value of the sum of independent differences: their signs are flipped (`scipy.stats.permutation_test`).

    Args:
        sums: a difference a group; (groups,).
        seed: of the flips, where there are too many groups for all of them.
    """
    changed = sums[np.abs(sums) > 1e-12]
    if len(changed) < 2:  # one group alone: its difference is as likely with either sign
        return 1.0
    result = stats.permutation_test(
        (changed,), lambda x, axis=-1: np.sum(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=FLIPS, batch=max(1, BATCH_NUMBERS // len(changed)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)
