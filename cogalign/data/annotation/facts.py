"""What is known of a case before a teacher sees it: the gold findings, organ, places, imaging."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogalign.cognition.anatomy import ORGANS, landmark_of
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.annotation.position import Place, from_boxes, from_mask
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import image_size

_SILENT = ("", "unknown", "none", "null", "na", "n/a")
_MAYO = re.compile(r"ulcerative-colitis-grade-(\d(?:-\d)?)$")
_LOS_ANGELES = re.compile(r"esophagitis-(a|b-d)$")


@dataclass(frozen=True)
class Facts:
    """The gold annotation of one case."""

    findings: tuple[str, ...]
    organ: str
    """Key of `ORGANS`, or `unknown`."""
    landmark: str | None
    """Display name of a landmark."""
    places: tuple[Place, ...]
    """Of the lesions; empty for a normal case, or if there is neither mask nor box."""
    imaging: str | None
    """`endoscopy` or `capsule`."""
    light: str | None
    paris: str | None
    grade: str | None
    """In words: `Mayo grade 2`."""

    @property
    def is_normal(self) -> bool:
        """Whether nothing was found."""
        return self.findings == ("normal",)

    @property
    def organ_name(self) -> str | None:
        """Display name of the organ; None if it is not known."""
        return ORGANS.get(self.organ)


def facts_of(case_set: CaseSet, case: Case) -> Facts:
    """The facts of a case; its mask is read, its image is not decoded.

    Raises:
        ValueError, FileNotFoundError: the mask is not there, not readable, or not as large as the image.
    """
    attributes = case.attributes
    label = attributes.get("class")
    landmark = landmark_of(label) if isinstance(label, str) else None
    organ = landmark.organ if landmark is not None and case.organ == "unknown" else case.organ
    paris = _text(attributes, "paris")
    return Facts(
        findings=case.findings,
        organ=organ,
        landmark=landmark.name if landmark is not None else None,
        places=() if case.is_normal else _places(case_set, case),
        imaging=_text(attributes, "imaging"),
        light=_text(attributes, "light"),
        paris=re.sub(r"^(?:paris )?(?:type |class )?(?:0-)?", "", paris, flags=re.IGNORECASE) if paris else None,
        grade=_grade(attributes),
    )


def _places(case_set: CaseSet, case: Case) -> tuple[Place, ...]:
    """Places from boxes, which know their findings, else from the mask."""
    mask = case_set.mask(case)
    if case.boxes:
        width, height = image_size(case_set.path(case.file_name))
        return tuple(from_boxes(case.boxes, width, height, mask))
    if mask is None or not mask.any():
        return ()
    focal = [finding for finding in case.findings if FINDINGS[finding].focal]
    return tuple(from_mask(mask, focal[0] if len(focal) == 1 else ""))


def _text(attributes: Mapping[str, Any], name: str) -> str | None:
    """A text among the attributes; None where it says nothing."""
    value = attributes.get(name)
    value = value.strip() if isinstance(value, str) else value
    return value if isinstance(value, str) and value.lower() not in _SILENT else None


def _grade(attributes: Mapping[str, Any]) -> str | None:
    """The grade of an inflammation in words, from the attributes or HyperKvasir's class names."""
    for name, words in (("mayo", "Mayo grade"), ("grade", "grade")):
        value = attributes.get(name)
        if isinstance(value, int | str) and not isinstance(value, bool) and str(value).strip().lower() not in _SILENT:
            text = str(value).strip()
            return text if "grade" in text.lower() or "mayo" in text.lower() else f"{words} {text}"
    label = attributes.get("class")
    plain = re.sub(r"[\s_]+", "-", label.strip().lower()) if isinstance(label, str) else ""
    if match := _MAYO.search(plain):
        return f"Mayo grade {match.group(1)}"
    if match := _LOS_ANGELES.search(plain):
        return f"Los Angeles grade {'A' if match.group(1) == 'a' else 'B to D'}"
    return None
