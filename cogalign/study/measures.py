"""What a study measures: each measure has a key, e.g. `test/accuracy`, and is a mean over images or of several such means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cogalign.cognition.taxonomy import FINDINGS, name_of
from cogalign.evaluation.audit import BLUR_KEPT, LESION_READ, LOWER_IS_BETTER, RATES
from cogalign.evaluation.audit_section import BLUR_NAME, LESION_READ_NAME, RATE_NAMES
from cogalign.study.settings import OWN

KEPT, SPOTS = "originals_kept", "spot_drop"
SCORE, SAME = "causal_score", "background_same_rate"
RECALL = "_recall"
RECALLED = ("polyp", "normal")
"""Findings whose recall is told on the splits that are not the main one."""
LABELS = {
    "accuracy": "accuracy",
    KEPT: "originals kept",
    **{
        name: label[0].lower() + label[1:]
        for name, label in (RATE_NAMES | {BLUR_KEPT: BLUR_NAME, LESION_READ: LESION_READ_NAME}).items()
    },
    SPOTS: "accuracy lost under bubbles and reflections",
    SCORE: "causal score",
}
_SCORE_PARTS = tuple(SAME if kind == "background" else name for kind, name in RATES.items())
NAMES = (
    "accuracy",
    KEPT,
    *(f"{name}{RECALL}" for name in RECALLED),
    LESION_READ,
    SCORE,
    *RATES.values(),
    BLUR_KEPT,
    SPOTS,
)
"""All names of measures, in the order of the tables."""


@dataclass(frozen=True)
class Measure:
    """One line of the tables."""

    where: str
    """A split, `OWN` or the name of an audit set."""
    name: str

    @property
    def key(self) -> str:
        """Its key in `study.json`."""
        return f"{self.where}/{self.name}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Keys of the events whose rates are averaged: four for a causal score, else one."""
        return tuple(f"{self.where}/{part}" for part in _SCORE_PARTS) if self.name == SCORE else (self.key,)

    @property
    def lower_is_better(self) -> bool:
        """Whether a small value is good."""
        return self.name in (*LOWER_IS_BETTER, SPOTS)

    @property
    def is_judgement(self) -> bool:
        """Whether it comes from the causal audit, not from accuracy on a split."""
        return self.name in (SCORE, LESION_READ, *RATES.values(), BLUR_KEPT, SPOTS)

    @property
    def signed(self) -> bool:
        """Whether an image's value may be -1 (it is a difference), so that the mean may be negative."""
        return self.name == SPOTS

    @property
    def label(self) -> str:
        """Its name in tables and plots, without where it was measured."""
        if self.name.endswith(RECALL):
            finding = self.name.removesuffix(RECALL)
            return f"{name_of(finding).lower() if finding in FINDINGS else finding} recall"
        return LABELS[self.name]

    @property
    def title(self) -> str:
        """Its name with where it was measured."""
        return self.label if self.where == OWN else f"{self.label} ({self.where})"


def measures_of(keys: Iterable[str]) -> list[Measure]:
    """The measures that can be computed from events of these keys: those of splits first, then those of pairs.

    A causal score is there where all four of its parts are: a mean of fewer would not compare.
    """
    found = [Measure(*key.rsplit("/", 1)) for key in dict.fromkeys(keys)]
    known = {one.key for one in found}
    scores = [Measure(where, SCORE) for where in dict.fromkeys(one.where for one in found)]
    found = [one for one in found if one.name in NAMES] + [one for one in scores if known.issuperset(one.parts)]
    places = list(dict.fromkeys(one.where for one in found))
    return sorted(found, key=lambda one: (one.is_judgement, places.index(one.where), NAMES.index(one.name)))
