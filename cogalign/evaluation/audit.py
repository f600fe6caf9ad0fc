"""Rates of the causal audit, from predictions on pairs: does the model read the lesion or the background?

Each rate is a mean over counterfactual images of one kind:

- `removal_normal_rate`: the lesions are gone; the diagnosis is exactly `normal`.
- `control_keep_rate`: the same operator off the lesion; the diagnosis is the case's.
- `transplant_keep_rate`: the lesion on another background; the diagnosis is the lesion's.
- `background_flip_rate`: only a background cue is changed; the diagnosis differs from what the same model says of the
  unedited image, right or wrong. Lower is better.

Beside them, and not in the causal score:

- `lesion_read_rate`: of the cases with a removal, the share whose image is diagnosed right, whose removal is normal, and whose
  control and transplant, where there are any, are right too. It is 0 for a model that always says the same.
- `remaining_rate`: one of several different findings was removed; the diagnosis is exactly the others.
- `background_blur_keep_rate`: all but the lesions is blurred; the diagnosis is the case's.
- `sets`: the rates of other sets of pairs, by name.

A case counts whether or not the model saw the lesion in the unedited image: a model that calls everything normal has
a removal rate of 1, and pays for it in the control and transplant rates. `<rate>_given_correct` is the same rate among
the cases whose unedited image the model got right. A model that never gives a diagnosis cannot flip: its background
flip rate is 0 and its causal score 0.25. One that always names the lesion's finding has a removal rate of 0, 1 in the other
three parts, and so a causal score of 0.75: read it beside `lesion_read_rate`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cogalign.data.case import Case
from cogalign.evaluation.audit_sets import FACTUAL, predictions_of, set_names
from cogalign.evaluation.metrics import exact_match
from cogalign.evaluation.statistics import Interval, bootstrap_interval, difference_interval, mean_interval
from cogalign.evaluation.storage import rows_of

RATES = {
    "removal": "removal_normal_rate",
    "control": "control_keep_rate",
    "transplant": "transplant_keep_rate",
    "background": "background_flip_rate",
}
"""The rate of each kind of counterfactual."""
REMAINING = "removal_of_one"
"""Kind of the counterfactuals from which one of several findings was removed; not part of the causal score."""
BACKGROUND_BLUR = "background_blur"
"""Kind of the unedited images of which all but the lesions is blurred; not part of the causal score."""
BLUR_KEPT = "background_blur_keep_rate"
"""The rate of this kind."""
LESION_READ = "lesion_read_rate"
"""All answers about a case at once; not part of the causal score."""
LOWER_IS_BETTER = ("background_flip_rate",)


def judgements(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row for each counterfactual prediction of one model.

    Args:
        predictions: rows of one model, `factual` ones and those of the interventions.

    Returns:
        Columns `kind`, `group`, `id`, `source` (the unedited case), `value` (the event that the rate counts) and
        `factual_correct`.

    Raises:
        ValueError: a counterfactual's unedited image was not predicted.
    """
    factual = {row.id: row for row in rows_of(predictions[predictions["kind"] == "factual"])}
    rows = []
    for row in rows_of(predictions[predictions["kind"].isin(RATES)]):
        source = factual.get(row.counterfactual_of)
        if source is None:
            raise ValueError(f"audit: case {row.id!r} is of {row.counterfactual_of!r}, which was not predicted")
        if row.kind == "removal":
            value = exact_match(("normal",), row.diagnosis, row.unknown)
        elif row.kind == "background":
            said, before = ({*item.diagnosis, *item.unknown} for item in (row, source))
            value = said != before
        else:
            value = bool(row.correct)
        rows.append((row.kind, row.group, row.id, source.id, value, bool(source.correct)))
    return pd.DataFrame(rows, columns=["kind", "group", "id", "source", "value", "factual_correct"])


def lesion_read(judged: pd.DataFrame) -> pd.DataFrame:
    """One row for each case with a removal: whether all that the lesion decides about it was answered right.

    Args:
        judged: as `judgements` gives it.

    Returns:
        Columns `group`, `id` (of the unedited case) and `value`: its own diagnosis is right, its removal is normal, and its
        controls and transplants are right.
    """
    decided = judged[judged["kind"] != "background"]
    removed = set(decided[decided["kind"] == "removal"]["source"])
    rows = [
        (case["group"].iloc[0], source, bool(case["value"].all() and case["factual_correct"].all()))
        for source, case in decided[decided["source"].isin(removed)].groupby("source", sort=False)
    ]
    return pd.DataFrame(rows, columns=["group", "id", "value"])


def _with_both(name: str, frame: pd.DataFrame, correct: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """A rate with its interval, and among those whose unedited image was answered right."""
    given = _with_interval(f"{name}_given_correct", correct, resamples, seed)
    return _with_interval(name, frame, resamples, seed) | given


def _with_interval(name: str, frame: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    values = frame["value"].astype(float).to_numpy()
    return {
        name: float(values.mean()) if len(values) else None,
        f"{name}_ci": mean_interval(values, frame["group"].tolist(), resamples=resamples, seed=seed),
        f"{name}_n": len(values),
    }


def kind_of(case: Case) -> str:
    """The kind under which the audit asks about a counterfactual: its intervention, or `REMAINING`."""
    return REMAINING if case.intervention == "removal" and not case.is_normal else str(case.intervention)


def _remaining(predictions: pd.DataFrame) -> pd.DataFrame:
    """`group` and `value` of the images from which one of several findings was removed."""
    rows = predictions[predictions["kind"] == REMAINING]
    return pd.DataFrame({"group": rows["group"], "value": rows["correct"].astype(bool)})


def spot_drop(predictions: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Accuracy lost under spots in points (factual minus spots, x 100), paired by case, with interval and n."""
    factual = predictions[predictions["kind"] == "factual"].set_index("id")
    spots = predictions[predictions["kind"] == "spots"].set_index("id")
    if spots.empty:
        return {"spot_drop": None, "spot_drop_ci": None, "spot_drop_n": 0}
    before = factual.loc[spots.index, "correct"].astype(float).to_numpy()
    lost = before - spots["correct"].astype(float).to_numpy()
    interval = difference_interval(lost, spots["group"].tolist(), resamples=resamples, seed=seed)
    points = tuple(100 * bound for bound in interval) if interval else None
    return {"spot_drop": 100 * float(lost.mean()), "spot_drop_ci": points, "spot_drop_n": len(lost)}


def background_blur(predictions: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """`background_blur_keep_rate` of one model, also among the cases it got right before; empty if it was not asked."""
    blurred = predictions[predictions["kind"] == BACKGROUND_BLUR]
    if blurred.empty:
        return {}
    before = predictions[predictions["kind"] == FACTUAL].set_index("id")["correct"]
    frame = pd.DataFrame({"group": blurred["group"], "value": blurred["correct"].astype(bool)})
    known = before.loc[blurred["id"]].astype(bool).to_numpy()
    return _with_both(BLUR_KEPT, frame, frame[known], resamples, seed)


def causal_score(judged: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> tuple[float | None, Interval | None]:
    """Mean of the four rates, the flip rate as 1 minus itself, with a bootstrap interval over groups.

    All counterfactuals of a group are resampled together. Where no resample differs from another (all rates 0 or 1) the
    interval is the mean of the four rates' own intervals, which is wider than that of a mean.

    Returns:
        (None, None) when one of the four kinds has no case: a mean of fewer would not compare with other runs.
    """
    if set(judged["kind"]) != set(RATES):
        return None, None
    good = judged["value"].astype(float).to_numpy()
    good = np.where(judged["kind"] == "background", 1 - good, good)
    codes, _ = pd.factorize(judged["group"])
    kinds = judged["kind"].map({kind: index for index, kind in enumerate(RATES)}).to_numpy()
    sums, counts = np.zeros((2, codes.max() + 1, len(RATES)))
    np.add.at(sums, (codes, kinds), good)
    np.add.at(counts, (codes, kinds), 1.0)
    score = float(np.mean(sums.sum(axis=0) / counts.sum(axis=0)))

    def statistic(index: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        rows = np.moveaxis(index, axis, -1).astype(int)
        n = counts[rows].sum(axis=-2)
        rates = np.where(n > 0, sums[rows].sum(axis=-2) / np.maximum(n, 1), np.nan)
        return np.asarray(np.nanmean(rates, axis=-1))

    found = None
    if len(sums) > 1:
        found = bootstrap_interval(
            (np.arange(len(sums)),), statistic, resamples=resamples, seed=seed, method="percentile",
            row_numbers=2 * len(RATES),
        )  # fmt: skip
    if found is None:
        parts = [
            mean_interval(good[kinds == kind], judged["group"][kinds == kind].tolist(), resamples=resamples, seed=seed)
            for kind in range(len(RATES))
        ]
        low, high = np.mean([part for part in parts if part], axis=0)
        found = float(low), float(high)
    return score, (min(found[0], score), max(found[1], score))


def _rates(judged: pd.DataFrame, resamples: int, seed: int, kinds: Collection[str] = tuple(RATES)) -> dict[str, Any]:
    """The rates of some kinds, from `judgements`."""
    result: dict[str, Any] = {}
    for kind in kinds:
        name, frame = RATES[kind], judged[judged["kind"] == kind]
        result |= _with_both(name, frame, frame[frame["factual_correct"]], resamples, seed)
    if "removal" in kinds:
        result |= _with_interval(LESION_READ, lesion_read(judged), resamples, seed)
    return result


def _score(judged: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    score, interval = causal_score(judged, resamples, seed)
    return {"causal_score": score, "causal_score_ci": interval, "causal_score_n": int(judged["group"].nunique())}


def audit_set(predictions: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The rates of one model on one set of pairs, named as in `audit_model`; kinds that the set lacks are left out.

    Args:
        predictions: of one model, as `predictions_of` gives them.
        resamples: resamples of each interval.
        seed: seed of the resampling.
    """
    there = set(predictions["kind"])
    judged = judgements(predictions)
    result = _rates(judged, resamples, seed, [kind for kind in RATES if kind in there])
    if REMAINING in there:
        result |= _with_interval("remaining_rate", _remaining(predictions), resamples, seed)
    return result | (_score(judged, resamples, seed) if there >= set(RATES) else {})


def audit_model(predictions: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """All rates of one model, each with its 95 % interval (`_ci`) and number of images (`_n`).

    Args:
        predictions: rows of one model (`cogalign.evaluation.predict.COLUMNS`) of the kinds `factual`, `spots` and the
            interventions; where there are any, also of `background_blur` and of the pairs of audit sets.
        resamples: resamples of each interval.
        seed: seed of the resampling.
    """
    judged = judgements(predictions)
    result = _rates(judged, resamples, seed)
    result |= _with_interval("remaining_rate", _remaining(predictions), resamples, seed)
    result |= spot_drop(predictions, resamples, seed)
    result |= background_blur(predictions, resamples, seed)
    result |= _score(judged, resamples, seed)
    names = set_names(predictions)
    if names:
        result["sets"] = {name: audit_set(predictions_of(predictions, name), resamples, seed) for name in names}
    return result
