"""Organs and anatomical landmarks: what the place in an image is called, and to which organ it belongs."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

ORGANS: dict[str, str] = {
    "esophagus": "Esophagus",
    "stomach": "Stomach",
    "small_bowel": "Small bowel",
    "colon": "Colon",
}
"""Id of an organ (the values of `Case.organ`, less `unknown`) and its display name."""

_BRITISH = (("oesoph", "esoph"), ("oedema", "edema"), ("haem", "hem"), ("tumour", "tumor"), ("caec", "cec"))

_ORGAN_WORDS = {
    "esophagus": ("esophagus", "esophageal", "gastroesophageal", "z line"),
    "stomach": ("stomach", "gastric", "cardia", "pylorus", "pyloric", "antrum", "fundus"),
    "small_bowel": ("small bowel", "small intestine", "duodenum", "duodenal", "jejunum", "ileum", "ileal", "ampulla"),
    "colon": (
        "colon",
        "colonic",
        "colorectal",
        "large bowel",
        "large intestine",
        "rectum",
        "rectal",
        "cecum",
        "ileocecal",
    ),
}


def american(text: str) -> str:
    """The text in lower case, without accents, British medical spellings made American ones."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    for british, american_form in _BRITISH:
        plain = plain.replace(british, american_form)
    return plain


def key(text: str) -> str:
    """What names are compared by: letters and digits alone, so that `Z-line`, `z line` and `z_line` are one name."""
    return re.sub(r"[^a-z0-9]", "", american(text))


@dataclass(frozen=True)
class Landmark:
    """A place or a normal view that data sets use as a class; an image of one holds no finding."""

    id: str
    name: str
    organ: str
    """Key of `ORGANS`, or `unknown`."""
    synonyms: tuple[str, ...] = ()


def _landmarks() -> dict[str, Landmark]:
    rows = (
        Landmark("z_line", "Z-line", "esophagus",
                 ("normal z-line", "gastroesophageal junction normal z-line", "gastroesophageal junction")),
        Landmark("esophagus", "esophageal body", "esophagus", ("normal esophagus",)),
        Landmark("stomach", "gastric body", "stomach", ("normal stomach",)),
        Landmark("retroflex_stomach", "retroflexed view", "stomach", ("retroflexed stomach",)),
        Landmark("pylorus", "pylorus", "stomach", ("normal pylorus",)),
        Landmark("duodenal_bulb", "duodenal bulb", "small_bowel"),
        Landmark("ampulla_of_vater", "ampulla of Vater", "small_bowel", ("papilla of Vater",)),
        Landmark("terminal_ileum", "terminal ileum", "small_bowel", ("ileum", "small bowel terminal ileum")),
        Landmark("ileocecal_valve", "ileocecal valve", "colon", ("ileo-cecal valve",)),
        Landmark("cecum", "cecum", "colon", ("normal cecum",)),
        Landmark("large_bowel", "large bowel mucosa", "colon",
                 ("normal mucosa and vascular pattern in the large bowel", "normal colon")),
        Landmark("retroflex_rectum", "rectum, retroflexed view", "colon", ("retroflexed rectum", "rectum")),
        Landmark("clean_colon", "well cleaned bowel", "colon", ("bbps-2-3", "bbps 2", "bbps 3")),
    )  # fmt: skip
    return {row.id: row for row in rows}


LANDMARKS: dict[str, Landmark] = _landmarks()
"""All landmarks by id."""

_LANDMARK_OF = {key(name): row for row in LANDMARKS.values() for name in (row.id, row.name, *row.synonyms)}


def landmark_of(text: str) -> Landmark | None:
    """The landmark that a class name means (`normal-cecum`, `Ileo-cecal valve`), or None."""
    return _LANDMARK_OF.get(key(text))


def organ_in(text: str) -> str | None:
    """The organ that a location text speaks of: the one that is named first, or None."""
    words = " ".join(re.findall(r"[a-z0-9]+", american(text)))
    places = [
        (match.start(), organ)
        for organ, names in _ORGAN_WORDS.items()
        for name in names
        if (match := re.search(rf"\b{name}\b", words))
    ]
    return min(places)[1] if places else None
