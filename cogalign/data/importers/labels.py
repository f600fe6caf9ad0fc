"""From the class names of a data set to findings of the taxonomy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cogalign.cognition.anatomy import key as plain
from cogalign.cognition.anatomy import landmark_of, organ_in
from cogalign.cognition.taxonomy import FINDINGS, lookup, nearest
from cogalign.data.cards.card import Card, Findings
from cogalign.data.cards.strict import nearest_of
from cogalign.data.importers.base import Photograph


class LeftOut(Exception):
    """The card leaves out the image: all its classes are mapped to null."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(", ".join(labels))
        self.labels = tuple(labels)


@dataclass(frozen=True)
class Decision:
    """What an image shows."""

    labels: tuple[str, ...]
    """The data set's own class names."""
    findings: tuple[str, ...]
    ignored: tuple[str, ...]
    """Class names that the card maps to null."""


class LabelMap:
    """The findings of class names: the part's map, then the card's, then the taxonomy."""

    def __init__(self, card: Card, photograph: Photograph) -> None:
        self._exact: dict[str, Findings] = {**card.label_map, **dict(photograph.label_map)}
        self._plain = {plain(name): value for name, value in self._exact.items()}

    def of(self, label: str) -> tuple[str, ...] | None:
        """The findings of a class name; None if the card leaves it out.

        Raises:
            ValueError: neither card nor taxonomy knows it; the message names the nearest.
        """
        for known, name in ((self._exact, label), (self._plain, plain(label))):
            if name in known:
                value = known[name]
                return (value,) if isinstance(value, str) else value
        finding = lookup(label)
        if finding is None:
            near = f", of the card {nearest_of(label, list(self._exact))}" if self._exact else ""
            raise ValueError(f"class {label!r} is not in the taxonomy, nearest: {nearest(label)!r}{near}")
        return (finding.id,)


def decide(photograph: Photograph, names: LabelMap, mask_labels: Iterable[str] = ()) -> Decision:
    """The findings of a photograph. `normal` gives way to any other finding.

    Args:
        photograph: its labels, or its boxes where the labels are those of the boxes.
        names: the card's map.
        mask_labels: class names of the masks, where the labels are those of the masks.

    Raises:
        ValueError: a class is not known, or there is none though the image has no question and answer either.
        LeftOut: the card leaves out what the image shows.
    """
    labels = photograph.labels
    if not labels and photograph.label_from == "boxes":
        labels = tuple(dict.fromkeys(box.label for box in photograph.boxes))
    elif not labels and photograph.label_from == "masks":
        labels = tuple(dict.fromkeys(mask_labels))
    if not labels and photograph.label_from is not None:
        if photograph.none is None:
            raise LeftOut(("no class",))
        return Decision((), (photograph.none,), ())
    if not labels:
        if not (photograph.question and photograph.answer):
            raise ValueError("it has no class, and not both a question and an answer")
        return Decision((), (), ())
    mapped = {label: names.of(label) for label in labels}
    found = tuple(dict.fromkeys(one for findings in mapped.values() for one in findings or ()))
    if not found:
        raise LeftOut(labels)
    lesions = tuple(one for one in found if not FINDINGS[one].normal)
    ignored = tuple(label for label, findings in mapped.items() if findings is None)
    return Decision(labels, lesions or found, ignored)


def organ_of(photograph: Photograph, decision: Decision) -> str:
    """The organ: what the card says, else what a class name tells, else the only organ of the findings."""
    if photograph.organ:
        return photograph.organ
    for label in decision.labels:
        landmark = landmark_of(label)
        if landmark is not None and landmark.organ != "unknown":
            return landmark.organ
    named = next((organ for label in decision.labels if (organ := organ_in(label))), None)
    organs = {FINDINGS[one].organs for one in decision.findings if len(FINDINGS[one].organs) == 1}
    return named or (organs.pop()[0] if len(organs) == 1 else "unknown")
