"""Pairs of images for the report, with what each model said of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from PIL import Image

from cogalign.cognition.taxonomy import name_of
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.evaluation.audit import RATES
from cogalign.evaluation.audit_sets import kind_in, set_of
from cogalign.evaluation.selection import spread
from cogalign.evaluation.storage import rows_of

KINDS = ("factual", *RATES)
TITLES = {
    "factual": "As taken",
    "removal": "Lesion removed",
    "control": "Control: same operator off the lesion",
    "transplant": "Lesion on another background",
    "background": "Background cue changed",
}
THUMBNAIL = 224
"""Longest side of an image in the report, in pixels."""


@dataclass(frozen=True)
class Answer:
    """What one model said of one image."""

    model: str
    said: str
    correct: bool
    completion: str


@dataclass(frozen=True)
class Picture:
    """One image of a pair."""

    kind: str
    title: str
    address: str
    """The image as a data address."""
    truth: str
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """A case and its counterfactuals."""

    id: str
    pictures: list[Picture]


def names(findings: Sequence[str], unknown: Sequence[str] = ()) -> str:
    """Display names of findings, then words that are no finding, in quotation marks."""
    texts = [name_of(finding) for finding in findings] + [f"“{word[:40]}”" for word in unknown]
    return ", ".join(texts) or "no diagnosis"


def thumbnail(image: Image.Image) -> str:
    """`image` as a JPEG data address, its longest side at most `THUMBNAIL` pixels."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _choose(predictions: pd.DataFrame, factual: CaseSet, count: int) -> list[str]:
    """Ids of source cases: those with the most kinds of counterfactuals, spread evenly over the findings."""
    edited = predictions[predictions["kind"].isin(RATES)]
    kinds = edited.groupby("counterfactual_of")["kind"].nunique()
    ids = [str(name) for name in kinds.index[kinds == kinds.max()] if name in factual.by_id] if len(kinds) else []
    return spread(sorted(ids, key=lambda name: (factual.by_id[name].findings, name)), count)


def _picture(case: Case, kind: str, case_set: CaseSet, rows: pd.DataFrame) -> Picture:
    answers = [
        Answer(str(row.model), names(row.diagnosis, row.unknown), bool(row.correct), str(row.completion))
        for row in rows_of(rows)
    ]
    name, base = set_of(kind)
    title = TITLES[base] if name is None else f"{TITLES[base]} ({name})"
    return Picture(kind, title, thumbnail(case_set.image(case)), names(case.findings), answers)


def gallery(
    predictions: pd.DataFrame,
    factual: CaseSet,
    pairs: CaseSet,
    count: int = 8,
    sets: Mapping[str, CaseSet] | None = None,
) -> list[Pair]:
    """Pairs for the report, chosen by finding and never by result, each with its counterfactuals of other audit sets.

    Args:
        predictions: what the audit's models said (`audit/predictions.parquet`).
        factual: the case set of the unedited images.
        pairs: the counterfactual case set.
        count: at most so many cases.
        sets: pairs of audit sets by name. Of their images, those that show nothing new are left out.
    """
    folders = {"factual": factual, **dict.fromkeys(RATES, pairs)}
    for name, others in (sets or {}).items():
        folders |= {kind_in(name, kind): others for kind in RATES}
    predictions = predictions[predictions["kind"].isin(folders)]
    by_image = dict(tuple(predictions.groupby(["kind", "id"], sort=False)))
    edited = predictions.drop_duplicates(["counterfactual_of", "kind"])
    first = {(row.counterfactual_of, row.kind): row.id for row in rows_of(edited)}
    found = []
    for source in _choose(predictions, factual, count):
        pictures: list[Picture] = []
        for kind, case_set in folders.items():
            shown = source if kind == "factual" else first.get((source, kind))
            if shown is None or shown not in case_set.by_id or (kind, shown) not in by_image:
                continue
            picture = _picture(case_set.by_id[shown], kind, case_set, by_image[kind, shown])
            if kind in KINDS or all(picture.address != other.address for other in pictures):
                pictures.append(picture)
        found.append(Pair(source, pictures))
    return found
