"""Pictures of the page: an image, its counterfactuals, and what each arm said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cogalign.evaluation.gallery import Pair, gallery
from cogalign.study.repeats import case_set

ROWS = 6
"""So many cases are shown."""


def pictures(
    out: Path, sets: Sequence[str], predictions: Mapping[str, pd.DataFrame], titles: Mapping[str, str]
) -> list[Pair]:
    """Rows of pictures: as taken, then the pairs of the study and those of its audit sets, with what each arm said.

    The cases are chosen as in a run's report: those with most kinds of pairs, spread over the findings and their ids,
    whatever was said of them.

    Args:
        out: the study's folder; where it holds no case set or no pairs there are no pictures.
        sets: names of the audit sets.
        predictions: arm → `audit/predictions.parquet` of one seed.
        titles: arm → its name.
    """
    factual, pairs = (case_set(out / "shared" / name) for name in ("data", "counterfactual"))
    if factual is None or pairs is None or not predictions:
        return []
    others = {name: found for name in sets if (found := case_set(out / "sets" / name / "counterfactual")) is not None}
    said = pd.concat([frame.assign(model=titles[arm]) for arm, frame in predictions.items()], ignore_index=True)
    return gallery(said, factual, pairs, ROWS, others)
