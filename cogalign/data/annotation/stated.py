"""Which positions in the image a report states for the lesions, and whether the known places contradict them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cogalign.cognition.anatomy import american
from cogalign.cognition.negation import NegatedText
from cogalign.data.annotation.mentions import mentions
from cogalign.data.annotation.position import Place

MARGIN = 0.08
"""A centre may lie so far beyond the middle line, and the side is still not contradicted."""
CENTRAL = 0.25
"""So far from the image's centre, in each direction, something may still be called central."""
HOURS = 2
"""Hours by which a clock position may be wrong."""

_ROW = r"upper|lower|top|bottom"
_COLUMN = r"left|right"
_MIDDLE = r"centre|center|central|middle|mid"
_IMAGE = r"(?:image|frame|field(?: of view)?|view|picture|photograph|screen)"
_PART = (
    r"(?:most)?(?: hand)?(?: (?:side|half|part|portion|third|edge|margin|border|corner|region|area|quadrant|aspect))?"
)
_NOT_ANATOMY = (
    r"(?! (?:esophag|gastric|stomach|colon|rectum|rectal|bowel|body|lobe|abdom|gi\b|tract|third of the [eserc]))"
)
_PATTERNS = tuple(re.compile(pattern) for pattern in (
    rf"\b(?P<a>{_ROW}|{_MIDDLE}) (?P<b>{_COLUMN}|centre|center)\b(?! of the (?:lesion|polyp|fold)){_NOT_ANATOMY}",
    rf"\b(?P<a>{_COLUMN}) (?P<b>{_ROW})\b(?! of the (?:lesion|polyp|fold)){_NOT_ANATOMY}",
    rf"\b(?P<a>{_ROW}|{_COLUMN}|{_MIDDLE}){_PART} (?:of|in) (?:the |this )?(?:endoscopic |capsule )?{_IMAGE}\b",
    rf"\b(?P<a>{_ROW}|{_COLUMN}|{_MIDDLE}) (?:image|frame|field|view|quadrants?)\b",
    r"\b(?P<a>centrally) (?:located|placed|positioned|situated|lying)\b",
))  # fmt: skip
_CLOCK = re.compile(r"\b(\d{1,2})(?: (?:to|and|or) (\d{1,2}))? ?o'? ?clock\b")
_MEANING = {"top": "upper", "bottom": "lower", **dict.fromkeys(("centre", "center", "central", "middle", "mid",
            "centrally"), "centre")}  # fmt: skip
_LESION = ("lesion", "mass", "nodule", "spot", "elevation", "protrusion", "bulge", "growth", "break", "defect", "mucosal break",
           "abnormality", "patch", "opening", "outpouching", "object")  # fmt: skip
_OTHER = ("lumen", "bubble", "foam", "bile", "debris", "residue", "stool", "reflection", "highlight", "glare", "shadow", "guide",
          "instrument", "forceps", "scope", "overlay", "text", "mucus", "border", "vignetting")  # fmt: skip


@dataclass(frozen=True)
class Stated:
    """A position that a text states."""

    words: str
    sides: frozenset[str] = frozenset()
    """Some of upper, lower, left, right, centre."""
    hours: tuple[int, ...] = ()


def stated_positions(text: str, names: Iterable[str]) -> list[Stated]:
    """The positions in the image that a text states for a lesion.

    A position counts if its clause speaks of a lesion, or its sentence does and the clause of nothing else (lumen,
    bubbles, reflections), and if it is not negated. Sides of organs (`left colon`, `upper third of the esophagus`)
    are none.

    Args:
        text: a section of a report.
        names: what the case's findings are called.
    """
    lesions = (*_LESION, *names)
    found = []
    for sentence in re.split(r"[.;\n]+(?:\s|$)|;", _plain(text)):
        if not any(True for _ in _positions(sentence)):
            continue
        about = _speaks(sentence, lesions)
        for clause in re.split(r",| while | whereas | but ", sentence):
            lesion = _speaks(clause, lesions)
            if lesion or (about and not _speaks(clause, _OTHER)):
                found += [stated for stated in _positions(clause) if not _negated(clause, stated)]
    return found


def contradicts(stated: Stated, places: Sequence[Place]) -> bool:
    """Whether not one of the places lies where a text says; never if no place is known."""
    return bool(places) and not any(_fits(stated, place) for place in places)


def _plain(text: str) -> str:
    """Lower case, one kind of apostrophe, no hyphens, no brackets."""
    plain = american(text.replace("’", "'").replace("–", " to "))
    plain = re.sub(r"(?<=\d)-(?=\d)", " to ", plain).replace("-", " ")
    return re.sub(r"[ \t()]+", " ", plain)


def _speaks(text: str, terms: Iterable[str]) -> bool:
    return mentions(text, terms).affirmed > 0


def _negated(clause: str, stated: Stated) -> bool:
    """Whether a clause says that nothing is there."""
    mentions = NegatedText(clause).mentions(stated.words.replace("'", " ").split()[0])
    return mentions.negated > 0 and mentions.affirmed == 0


def _positions(clause: str) -> Iterator[Stated]:
    taken: list[tuple[int, int]] = []
    for pattern in _PATTERNS:
        for match in pattern.finditer(clause):
            if any(match.start() < end and start < match.end() for start, end in taken):
                continue
            taken.append(match.span())
            words = [word for word in (match["a"], match.groupdict().get("b")) if word]
            sides = frozenset(_MEANING.get(word, word) for word in words)
            # `upper centre` is about height, `centre left` about the side.
            yield Stated(match.group(), sides - {"centre"} if len(sides) > 1 else sides)
    for match in _CLOCK.finditer(clause):
        hours = tuple(hour for text in match.groups() if text and 1 <= (hour := int(text)) <= 12)
        if hours:
            yield Stated(match.group(), hours=hours)


def _fits(stated: Stated, place: Place) -> bool:
    """Whether a place can be called so."""
    if stated.hours:
        return place.hour is None or any(_between(hour, place.hour) <= HOURS for hour in stated.hours)
    limits = {
        "left": place.x <= 0.5 + MARGIN,
        "right": place.x >= 0.5 - MARGIN,
        "upper": place.y <= 0.5 + MARGIN,
        "lower": place.y >= 0.5 - MARGIN,
        "centre": (place.xmin <= 0.5 <= place.xmax and place.ymin <= 0.5 <= place.ymax)
        or (math.fabs(place.x - 0.5) <= CENTRAL and math.fabs(place.y - 0.5) <= CENTRAL),
    }
    return all(limits[side] for side in stated.sides)


def _between(one: int, other: int) -> int:
    """Hours between two positions of a clock."""
    return min((one - other) % 12, (other - one) % 12)
