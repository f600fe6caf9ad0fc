"""Metrics of a frame of predictions; the names are the contract of `summary.json`.

A frame has one row a prediction with the columns of `cogalign.evaluation.predict.COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from cogalign.evaluation.statistics import bootstrap_interval, compare_paired, mean_interval
from cogalign.evaluation.storage import rows_of

NOTHING = "(nothing)"
SEVERAL = "(several)"
UNKNOWN = "(unknown word)"


def exact_match(findings: Iterable[str], diagnosis: Iterable[str], unknown: Iterable[str] = ()) -> bool:
    """Whether the set of diagnoses equals the case's findings; a diagnosis that no finding is named is a wrong one."""
    return set(diagnosis) == set(findings) and not list(unknown)


def groups_of(frame: pd.DataFrame) -> list[str]:
    """The unit of resampling of each row: its group."""
    return frame["group"].astype(str).tolist()


def _mean(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.astype(float).mean()) if len(known) else None


def with_findings(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of cases with findings: a question case has none, so that a diagnosis is neither right nor wrong."""
    return frame[frame["findings"].map(len).astype(int) > 0]


def is_multi_label(frame: pd.DataFrame) -> pd.Series:
    """Whether the case has more than one finding, a row each."""
    return frame["findings"].map(len) > 1


def accuracy(frame: pd.DataFrame) -> float | None:
    """Share of rows whose set of diagnoses equals the case's (paper: exact set match); None for no rows."""
    return _mean(frame["correct"])


def accuracy_single_label(frame: pd.DataFrame) -> float | None:
    """Accuracy on cases with one finding; None when there is none."""
    return accuracy(frame[~is_multi_label(frame)])


def accuracy_multi_label(frame: pd.DataFrame) -> float | None:
    """Accuracy on cases with several findings; None when there is none."""
    return accuracy(frame[is_multi_label(frame)])


def location_accuracy(frame: pd.DataFrame) -> float | None:
    """Share of rows whose location section names the case's organ and no other; None when no organ is known."""
    return _mean(frame["location_correct"])


def cognition_recall(frame: pd.DataFrame) -> float | None:
    """Mean share of the case's keywords that occur in the completion; None when no case has keywords."""
    return _mean(frame["cognition"])


def format_rate(frame: pd.DataFrame) -> float | None:
    """Share of completions with all three headings and a diagnosis."""
    return _mean(frame["format"])


def _label_matrices(frame: pd.DataFrame) -> tuple[list[str], NDArray[np.bool_], NDArray[np.bool_]]:
    """The findings that occur in the cases, and two (rows, findings) matrices: what is there, what was said."""
    labels = sorted({finding for findings in frame["findings"] for finding in findings})
    binarizer = MultiLabelBinarizer(classes=labels).fit([labels])
    allowed = set(labels)
    said = [[finding for finding in diagnosis if finding in allowed] for diagnosis in frame["diagnosis"]]
    return labels, binarizer.transform(frame["findings"]).astype(bool), binarizer.transform(said).astype(bool)


def macro_f1(frame: pd.DataFrame) -> float | None:
    """Mean F1 over the findings that occur in the cases (multi-label); a finding never said has F1 = 0."""
    if frame.empty:
        return None
    _, gold, said = _label_matrices(frame)
    return float(f1_score(gold, said, average="macro", zero_division=0))


def macro_f1_interval(frame: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the macro F1 over groups; None where the resamples do not vary."""
    if frame["group"].nunique() < 2:
        return None
    labels, gold, said = _label_matrices(frame)
    codes = pd.factorize(frame["group"])[0]
    counts = np.zeros((codes.max() + 1, 3, len(labels)))
    np.add.at(counts, codes, np.stack([gold & said, ~gold & said, gold & ~said], axis=1).astype(float))

    def statistic(index: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        rows = np.moveaxis(index, axis, -1).astype(int)
        tp, fp, fn = np.moveaxis(counts[rows].sum(axis=-3), -2, 0)
        denominator = 2 * tp + fp + fn
        # A finding that a resample holds no case of is left out of its mean, as it is of the metric.
        f1 = np.where(tp + fn > 0, 2 * tp / np.maximum(denominator, 1), np.nan)
        return np.asarray(np.nanmean(f1, axis=-1))

    return bootstrap_interval(
        (np.arange(len(counts)),), statistic, resamples=resamples, seed=seed, method="percentile",
        row_numbers=3 * len(labels),
    )  # fmt: skip


def _interval(frame: pd.DataFrame, column: str, resamples: int, seed: int) -> tuple[float, float] | None:
    known = frame[frame[column].notna()]
    return mean_interval(known[column].astype(float).to_numpy(), groups_of(known), resamples=resamples, seed=seed)


def summarize(frame: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """All metrics of one model on one split, each with its 95 % interval under `<name>_ci`; question cases do not count.

    `recall` holds for each finding of the cases `value`, `ci` and `n`: the share of its cases in which it was named.
    """
    frame = with_findings(frame)
    multi = is_multi_label(frame)
    parts = {"accuracy_single_label": frame[~multi], "accuracy_multi_label": frame[multi]}
    result: dict[str, Any] = {"accuracy": accuracy(frame), "accuracy_ci": _interval(frame, "correct", resamples, seed)}
    for name, part in parts.items():
        result[name] = accuracy(part)
        result[f"{name}_ci"] = _interval(part, "correct", resamples, seed)
        result[f"n{name.removeprefix('accuracy')}"] = len(part)
    result["macro_f1"] = macro_f1(frame)
    result["macro_f1_ci"] = macro_f1_interval(frame, resamples, seed)
    columns = {"location_accuracy": "location_correct", "cognition_recall": "cognition", "format_rate": "format"}
    for name, column in columns.items():
        result[name] = _mean(frame[column])
        result[f"{name}_ci"] = _interval(frame, column, resamples, seed)
    result["finished_rate"] = _mean(frame["finished"])
    result["recall"] = recall_by_finding(frame, resamples, seed)
    result["n"] = len(frame)
    result["n_groups"] = int(frame["group"].nunique())
    return result


def compare_models(
    frame: pd.DataFrame, first: str, second: str, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Paired comparison of two models' accuracy on the cases that both have, as plain values."""
    a = frame[frame["model"] == first].set_index("id")
    b = frame[frame["model"] == second].set_index("id")
    ids = a.index.intersection(b.index)
    groups = a.loc[ids, "group"].astype(str).tolist()
    return asdict(compare_paired(a.loc[ids, "correct"], b.loc[ids, "correct"], groups, resamples=resamples, seed=seed))


def recall_by_finding(frame: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Recall of each finding that occurs in the cases, the most frequent first: `value`, `ci` over groups, and `n` cases."""
    if frame.empty:
        return {}
    return {
        row.finding: {"value": row.recall, "ci": (row.recall_low, row.recall_high), "n": row.n}
        for row in rows_of(per_finding(frame, resamples, seed))
    }


def per_finding(frame: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Recall and precision of each finding that occurs in the cases.

    Returns:
        Columns `finding`, `n`, `recall`, `recall_low`, `recall_high` (bootstrap over groups, Wilson's
        where they agree), `precision` (NaN where never said),
        `f1`; the most frequent finding first.
    """
    labels, gold, said = _label_matrices(frame)
    rows = []
    for column, label in enumerate(labels):
        there, named = gold[:, column], said[:, column]
        hits = int(np.sum(there & named))
        groups = np.asarray(groups_of(frame))[there].tolist()
        low, high = mean_interval(named[there], groups, resamples=resamples, seed=seed) or (np.nan, np.nan)
        recall = hits / int(there.sum())
        precision = hits / int(named.sum()) if named.any() else float("nan")
        f1 = 2 * hits / int(there.sum() + named.sum())
        rows.append((label, int(there.sum()), recall, low, high, precision, f1))
    table = pd.DataFrame(rows, columns=["finding", "n", "recall", "recall_low", "recall_high", "precision", "f1"])
    return table.sort_values(["n", "finding"], ascending=[False, True], ignore_index=True)


def _said(diagnosis: Sequence[str], unknown: Sequence[str]) -> str:
    if len(diagnosis) + len(unknown) > 1:
        return SEVERAL
    if len(unknown):
        return UNKNOWN
    return str(diagnosis[0]) if len(diagnosis) else NOTHING


def confusion(frame: pd.DataFrame) -> pd.DataFrame:
    """What was said (columns) of the cases with one finding (rows), in numbers of cases.

    The last columns count completions with no diagnosis, with several and with a word that is no finding.
    """
    single = frame[~is_multi_label(frame)]
    there = [findings[0] for findings in single["findings"]]
    said = [_said(d, u) for d, u in zip(single["diagnosis"], single["unknown"], strict=True)]
    labels = sorted(set(there))
    extra = sorted(set(said) - set(labels) - {NOTHING, SEVERAL, UNKNOWN})
    table = pd.crosstab(pd.Series(there, dtype=object), pd.Series(said, dtype=object))
    special = [name for name in (SEVERAL, UNKNOWN, NOTHING) if name in said]
    return table.reindex(index=labels, columns=labels + extra + special, fill_value=0)
