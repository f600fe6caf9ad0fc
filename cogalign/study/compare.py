"""Arm against arm on the same images and seeds: difference, interval, tests, and Holm's correction over comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cogalign.evaluation.statistics import mcnemar, sign_flip
from cogalign.study.measures import Measure
from cogalign.study.table import RESAMPLES, Floats, by_part, cells_of, resampled_mean

_UNIT = ["key", "seed", "id"]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for the number of tests (Holm 1979): the family's error rate stays at the level.

    The k-th smallest of m is multiplied by m - k + 1; none is smaller than one before it, none above 1.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty(len(p))
    result[order] = adjusted
    return [float(value) for value in result]


def paired(first: pd.DataFrame, second: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """The events of a measure that both arms have: columns `key`, `seed`, `id`, `group`, `first` and `second`."""
    both = (
        first[first["key"].isin(measure.parts)]
        .rename(columns={"value": "first"})
        .merge(second.rename(columns={"value": "second"})[[*_UNIT, "second"]], on=_UNIT, validate="one_to_one")
    )
    parts = both.groupby("seed")["key"].nunique()
    return both[both["seed"].isin(parts[parts == len(measure.parts)].index)]


def _per_seed(both: pd.DataFrame, differences: Floats, measure: Measure) -> dict[str, Any]:
    """What each seed says: the difference and, for a plain rate, McNemar's exact test, which takes images as independent."""
    result: dict[str, Any] = {}
    for (seed, frame), difference in zip(both.groupby("seed"), differences, strict=True):
        result[str(seed)] = {"difference": float(difference)}
        if len(measure.parts) == 1 and not measure.signed:
            only_arm, only_against, p = mcnemar(frame["first"], frame["second"])
            result[str(seed)] |= {"only_arm": only_arm, "only_against": only_against, "p_mcnemar": p}
    return result


def compare(
    arm: pd.DataFrame, against: pd.DataFrame, measure: Measure, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any] | None:
    """Difference of two arms, on the images and seeds that both have.

    The test flips the signs of the differences of whole groups, all seeds of a group together: the difference of two
    rates on the same images, and of two causal scores, is a sum over groups.

    Args:
        arm: events of an arm, of all seeds.
        against: events of the arm that is taken off it.
        measure: what is compared.
        resamples: of the interval.
        seed: of the resampling and the flips.

    Returns:
        `difference` (mean over seeds), `ci` (percentiles, groups resampled), `p`, `n` (pairs of a seed), `groups` and
        `seeds`: for each the difference and, for a rate, the images on which only one arm has the event and McNemar's
        exact p. None if they have nothing in common.
    """
    both = paired(arm, against, measure)
    if both.empty:
        return None
    groups, seeds = sorted(both["group"].unique()), sorted(both["seed"].unique())
    cells = [cells_of(both.rename(columns={name: "value"}), measure, groups, seeds) for name in ("first", "second")]
    differences = cells[0].per_seed() - cells[1].per_seed()
    value = float(differences.mean())
    shares = (cells[0].sums - cells[1].sums) / cells[0].counts.sum(axis=0)
    found = resampled_mean([(1.0, cells[0]), (-1.0, cells[1])], resamples, seed, "percentile")
    if found is None:
        found = by_part(both.assign(value=both["first"] - both["second"]), measure, signed=True)
    return {
        "difference": value,
        "ci": (min(found[0], value), max(found[1], value)),
        "p": sign_flip(shares.sum(axis=(1, 2)), seed),
        "n": round(len(both) / len(seeds)),
        "groups": len(groups),
        "seeds": _per_seed(both, differences, measure),
    }


def comparisons(
    events: Mapping[str, pd.DataFrame],
    pairs: Sequence[Sequence[str]],
    measures: Sequence[Measure],
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """All pairs on all measures.

    Args:
        events: arm → its events of all seeds.
        pairs: (arm, against); a pair with an arm that has no events is left out.
        measures: what is compared.
        resamples: of each interval.

    Returns:
        `compare` of each, with `arm`, `against`, `measure` and `p_holm`: `p` corrected over the pairs of that measure.
    """
    result = []
    for measure in measures:
        rows = [
            {"arm": arm, "against": against, "measure": measure.key, **found}
            for arm, against in pairs
            if arm in events and against in events
            and (found := compare(events[arm], events[against], measure, resamples)) is not None
        ]  # fmt: skip
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
        result += rows
    return result
