"""Audit sets: other folders of pairs, whose predictions stand beside the run's own under kinds such as `unseen_fill/removal`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from cogalign.data.case import Case
from cogalign.training.file_digest import sha256_of

FACTUAL = "factual"
BETWEEN = "/"


def kind_in(name: str | None, kind: str) -> str:
    """The kind under which predictions of a set are kept; the run's own pairs (None) keep their kind."""
    return kind if name is None else f"{name}{BETWEEN}{kind}"


def set_of(kind: str) -> tuple[str | None, str]:
    """The set of a kind (None: the run's own) and the kind within it."""
    name, between, rest = kind.partition(BETWEEN)
    return (name, rest) if between else (None, kind)


def set_names(predictions: pd.DataFrame) -> list[str]:
    """The sets of which there are predictions, as they first occur."""
    return list(dict.fromkeys(name for kind in predictions["kind"] if (name := set_of(kind)[0]) is not None))


def predictions_of(predictions: pd.DataFrame, name: str | None) -> pd.DataFrame:
    """The predictions on the unedited images and those on one set's pairs, under the kinds of a run's own pairs.

    Args:
        predictions: rows of `cogalign.evaluation.predict.COLUMNS`.
        name: of the set; None: the run's own pairs, and its `spots` and `background_blur`.
    """
    parts = [set_of(kind) for kind in predictions["kind"]]
    chosen = [part == (None, FACTUAL) or part[0] == name for part in parts]
    kinds = [kind for (_, kind), taken in zip(parts, chosen, strict=True) if taken]
    return predictions[pd.Series(chosen, index=predictions.index, dtype=bool)].assign(kind=kinds)


class Answered:
    """Which images are asked about, by content and question, so that one that lies in several folders is asked once."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str | None], tuple[str, str]] = {}

    def add(self, kind: str, cases: Iterable[Case], path: Callable[[Case], Path]) -> dict[str, tuple[str, str]]:
        """Note the cases of a kind.

        Args:
            kind: under which they are asked.
            cases: the cases.
            path: the image file of a case.

        Returns:
            For the id of each case whose image was noted before under the same question: kind and id of the first.

        Raises:
            FileNotFoundError: an image is missing.
        """
        same = {}
        for case in cases:
            file = path(case)
            try:
                image = sha256_of(file)
            except FileNotFoundError:
                raise FileNotFoundError(f"case {case.id!r}: {file}: no such image") from None
            first = self._first.setdefault((image, case.question), (kind, case.id))
            if first != (kind, case.id):
                same[case.id] = first
        return same
