"""Rates of arms: means over images, then over seeds, with intervals that resample the images of all seeds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cogalign.evaluation.statistics import Interval, bootstrap_interval, difference_interval, mean_interval
from cogalign.study.measures import Measure

Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Cells:
    """Sums and numbers of events by group, seed and part of a measure; both arrays (groups, seeds, parts)."""

    sums: Floats
    counts: Floats

    def per_seed(self) -> Floats:
        """The measure of each seed, (seeds,): the mean of its parts' rates."""
        return _rates(self.sums.sum(axis=0), self.counts.sum(axis=0)).mean(axis=-1)


def _rates(sums: Floats, counts: Floats) -> Floats:
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def cells_of(events: pd.DataFrame, measure: Measure, groups: Sequence[str], seeds: Sequence[int]) -> Cells:
    """Events of one arm as arrays.

    Args:
        events: columns of `events.COLUMNS` and `seed`; rows of other measures are left out.
        measure: what is measured.
        groups: every group that occurs in the events.
        seeds: the seeds, in the order of the array.
    """
    places = [pd.Index(names) for names in (groups, seeds, measure.parts)]
    frame = events[events["key"].isin(measure.parts) & events["seed"].isin(seeds)]
    index = tuple(
        place.get_indexer(pd.Index(frame[name])) for place, name in zip(places, ("group", "seed", "key"), strict=True)
    )
    sums, counts = np.zeros((2, *(len(place) for place in places)))
    np.add.at(sums, index, frame["value"].to_numpy())
    np.add.at(counts, index, 1.0)
    return Cells(sums, counts)


def resampled_mean(parts: Sequence[tuple[float, Cells]], resamples: int, seed: int, method: str) -> Interval | None:
    """Bootstrap interval over groups of a weighted sum of arms' measures; None where no resample differs.

    Args:
        parts: weight and cells of each arm, all with the same groups; 1 and -1 give a difference.
        resamples: number of resamples.
        seed: seed of the resampling.
        method: `BCa` or `percentile`.
    """
    if len(parts[0][1].sums) < 2:
        return None

    def statistic(index: Floats, axis: int = -1) -> Floats:
        rows = np.moveaxis(index, axis, -1).astype(int)
        values = [w * np.nanmean(_rates(c.sums[rows].sum(-3), c.counts[rows].sum(-3)), axis=(-1, -2)) for w, c in parts]
        return np.asarray(np.sum(values, axis=0))

    numbers = sum(2 * cells.sums[0].size for _, cells in parts)
    return bootstrap_interval(
        (np.arange(len(parts[0][1].sums)),), statistic, resamples=resamples, seed=seed, method=method,
        row_numbers=numbers,
    )  # fmt: skip


def by_part(events: pd.DataFrame, measure: Measure, signed: bool) -> Interval:
    """Mean of the parts' own intervals: where all resamples are the same (all right, all wrong), wider than none at all."""
    interval = difference_interval if signed else mean_interval
    found = [interval(part["value"].to_numpy(), part["group"].tolist())
             for key in measure.parts if len(part := events[events["key"] == key])]  # fmt: skip
    low, high = np.mean([one for one in found if one], axis=0)
    return float(low), float(high)


def summarize(
    events: pd.DataFrame, measure: Measure, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any] | None:
    """One measure of one arm.

    Args:
        events: the arm's, of all seeds: columns of `events.COLUMNS` and `seed`.
        measure: what is measured.
        resamples: of the interval.
        seed: of the resampling.

    Returns:
        `value` (mean over seeds), `ci`, `n` (images of a seed), `groups`, `seeds` (seed → value); None if the arm lacks it.
    """
    events = events[events["key"].isin(measure.parts)]
    parts = events.groupby("seed")["key"].nunique()
    seeds = [int(one) for one in parts.index[parts == len(measure.parts)]]
    events = events[events["seed"].isin(seeds)]
    if events.empty:
        return None
    groups = sorted(events["group"].unique())
    cells = cells_of(events, measure, groups, seeds)
    per_seed = cells.per_seed()
    value = float(per_seed.mean())
    method = "BCa" if len(measure.parts) == 1 else "percentile"
    found = resampled_mean([(1.0, cells)], resamples, seed, method) or by_part(events, measure, measure.signed)
    return {
        "value": value,
        "ci": (min(found[0], value), max(found[1], value)),
        "n": round(float(cells.counts.sum() / len(seeds))),
        "groups": len(groups),
        "seeds": {str(one): float(rate) for one, rate in zip(seeds, per_seed, strict=True)},
    }


def table(
    events: Mapping[str, pd.DataFrame], measures: Sequence[Measure], resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """Key of a measure → arm → `summarize`; arms that lack a measure are left out of it."""
    rows = {
        one.key: {arm: found for arm, frame in events.items() if (found := summarize(frame, one, resamples))}
        for one in measures
    }
    return {key: arms for key, arms in rows.items() if arms}
