"""From the predictions of a run to events: one row for each image and measure, all that the statistics need."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cogalign.evaluation.audit import BACKGROUND_BLUR, LESION_READ, RATES, judgements, lesion_read
from cogalign.evaluation.audit_sets import FACTUAL, predictions_of, set_names
from cogalign.evaluation.metrics import with_findings
from cogalign.study.measures import BLUR_KEPT, KEPT, OWN, RECALL, RECALLED, SAME, SPOTS

COLUMNS = ("key", "id", "group", "value")
MAIN_SPLIT = "test"
"""The split of the training's own sources; where a case set has none of this name, the first that was judged."""


def main_split(evaluated: pd.DataFrame) -> str:
    """The split whose accuracy is that of the training's own sources."""
    splits = [str(split) for split in evaluated["split"].unique()]
    return MAIN_SPLIT if MAIN_SPLIT in splits or not splits else splits[0]


def _events(key: str, frame: pd.DataFrame, values: Sequence[float] | pd.Series) -> pd.DataFrame:
    return pd.DataFrame(
        {"key": key, "id": frame["id"].astype(str).to_numpy(), "group": frame["group"].astype(str).to_numpy(),
         "value": pd.Series(values).astype(float).to_numpy()}
    )  # fmt: skip


def evaluate_events(evaluated: pd.DataFrame) -> list[pd.DataFrame]:
    """Accuracy on each split, and on those beside the main one the recall of `RECALLED`.

    Args:
        evaluated: `evaluate/predictions.parquet` of one model.
    """
    evaluated, found = with_findings(evaluated), []
    main = main_split(evaluated)
    for split in sorted(evaluated["split"].unique(), key=lambda name: name != main):
        frame = evaluated[evaluated["split"] == split]
        found.append(_events(f"{split}/accuracy", frame, frame["correct"]))
        for finding in RECALLED if split != main else ():
            there = frame[[finding in findings for findings in frame["findings"]]]
            named = [finding in diagnosis for diagnosis in there["diagnosis"]]
            found.append(_events(f"{split}/{finding}{RECALL}", there, named))
    return found


def kept_events(evaluated: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Whether the cases of the main split that the reference got right are still right.

    Args:
        evaluated: `evaluate/predictions.parquet` of one model.
        reference: that of the reference with the same seed.
    """
    evaluated, reference = with_findings(evaluated), with_findings(reference)
    main = main_split(reference)
    right = reference[(reference["split"] == main) & reference["correct"]]["id"]
    frame = evaluated[(evaluated["split"] == main) & evaluated["id"].isin(right)]
    return _events(f"{main}/{KEPT}", frame, frame["correct"])


def audit_events(audited: pd.DataFrame) -> list[pd.DataFrame]:
    """The events of the causal audit, on the run's own pairs and on those of each audit set.

    Args:
        audited: `audit/predictions.parquet` of one model.

    Raises:
        ValueError: a counterfactual's unedited image was not predicted.
    """
    found = []
    for name in (None, *set_names(audited)):
        judged, where = judgements(predictions_of(audited, name)), name or OWN
        read = lesion_read(judged)
        found.append(_events(f"{where}/{LESION_READ}", read, read["value"]))
        for kind, rate in RATES.items():
            frame = judged[judged["kind"] == kind]
            found.append(_events(f"{where}/{rate}", frame, frame["value"]))
            if kind == "background":
                found.append(_events(f"{where}/{SAME}", frame, 1 - frame["value"].astype(float)))
    blurred = audited[audited["kind"] == BACKGROUND_BLUR]
    spots = audited[audited["kind"] == "spots"]
    before = audited[audited["kind"] == FACTUAL].set_index("id")["correct"].astype(float)
    lost = before.reindex(spots["id"]).to_numpy() - spots["correct"].astype(float).to_numpy()
    return [*found, _events(f"{OWN}/{BLUR_KEPT}", blurred, blurred["correct"]),
            _events(f"{OWN}/{SPOTS}", spots, lost.tolist())]  # fmt: skip


def events_of(evaluated: pd.DataFrame, audited: pd.DataFrame, reference: pd.DataFrame | None) -> pd.DataFrame:
    """All events of one run.

    Args:
        evaluated: `evaluate/predictions.parquet`.
        audited: `audit/predictions.parquet`.
        reference: the reference's `evaluate/predictions.parquet` of the same seed; None for the reference itself.

    Returns:
        Columns `COLUMNS`; `value` is 0 or 1, for `spot_drop` also -1. No row holds a missing value.
    """
    frames = [*evaluate_events(evaluated), *audit_events(audited)]
    if reference is not None:
        frames.append(kept_events(evaluated, reference))
    events = pd.concat([frame for frame in frames if len(frame)] or [pd.DataFrame(columns=list(COLUMNS))])
    return events.dropna(subset="value").reset_index(drop=True)
