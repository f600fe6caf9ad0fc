"""Reports from what is known: of counterfactuals, and of photographs that are annotated by class alone.

A template says what the annotation says, and "not annotated" where it is silent; it adds no clinical detail.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogalign.cognition.anatomy import ORGANS, landmark_of
from cogalign.cognition.report import Report
from cogalign.cognition.taxonomy import FINDINGS, name_of

_NORMAL_MORPHOLOGY = "Smooth flat mucosa with intact folds, no focal lesion."
_NORMAL_MICROVASCULATURE = "Regular surface pattern with normal fine vessels."
_ORGAN_MORPHOLOGY = {
    "esophagus": "Smooth pale mucosa of the tubular wall, no focal lesion.",
    "stomach": "Smooth mucosa with intact rugal folds, no focal lesion.",
    "small_bowel": "Velvety mucosa with intact circular folds, no focal lesion.",
    "colon": "Smooth mucosa with intact haustral folds, no focal lesion.",
}
_ANNOTATED_NORMAL = "Normal mucosa, no focal lesion annotated."
NOT_ANNOTATED = "Surface texture and vessels not annotated."
"""The microvasculature of a photograph whose annotation is silent on it."""


def normal_sections() -> tuple[str, str]:
    """Morphology and microvasculature of a report in which nothing is found, in any organ."""
    return _NORMAL_MORPHOLOGY, _NORMAL_MICROVASCULATURE


def negative_sections(organ: str) -> tuple[str, str]:
    """As `normal_sections`, with the normal relief of the organ (a key of `ORGANS`); any other organ: the general one."""
    return _ORGAN_MORPHOLOGY.get(organ, _NORMAL_MORPHOLOGY), _NORMAL_MICROVASCULATURE


def removal_report(source: Report) -> Report:
    """The report of an image whose lesions were all taken out: the source's location, nothing found, `normal`.

    Where the source's microvasculature is not annotated it stays so, and the morphology is that of a normal
    photograph's template: the text of a counterfactual must not differ from that of a true normal.
    """
    if source.microvasculature == NOT_ANNOTATED:
        return Report(source.location, _ANNOTATED_NORMAL, NOT_ANNOTATED, ("normal",))
    return Report(source.location, *normal_sections(), ("normal",))


def remaining_report(source: Report, remaining: Sequence[str], organ: str = "unknown") -> Report:
    """The report of an image from which some of its different findings were taken out and others remain.

    The location is the source's. A section that has one clause (between semicolons) for each finding of the diagnosis,
    in the same order, keeps the clauses of what remains; one that cannot be taken apart becomes the template's.

    Args:
        source: report of the image as it was.
        remaining: ids of the findings that are still there, some of the source's, at least one.
        organ: key of `ORGANS`, or `unknown`.

    Raises:
        ValueError: nothing remains, or something that the source does not have.
    """
    strange = [finding for finding in remaining if finding not in source.diagnosis]
    if not remaining or strange:
        raise ValueError(f"remaining: found {list(remaining)}, wanted some of {list(source.diagnosis)}")
    kept = tuple(finding for finding in source.diagnosis if finding in remaining)
    plain = template_report(kept, organ)
    sections = []
    for name in ("morphology", "microvasculature"):
        text: str = getattr(source, name)
        clauses = [clause.strip() for clause in text.rstrip(". ").split(";")]
        if text != NOT_ANNOTATED and len(clauses) == len(source.diagnosis) > 1:
            pairs = zip(source.diagnosis, clauses, strict=True)
            sections.append("; ".join(clause for finding, clause in pairs if finding in kept) + ".")
        else:
            sections.append(getattr(plain, name))
    return Report(source.location, sections[0], sections[1], kept)


def transplant_report(lesion: Report, background: Report) -> Report:
    """The report of a lesion on another image's background, which should be normal.

    The location is the background's; morphology, microvasculature and diagnosis are the lesion's.
    """
    return Report(background.location, lesion.morphology, lesion.microvasculature, lesion.diagnosis, lesion.unknown)


def template_report(
    findings: Sequence[str], organ: str = "unknown", landmark: str | None = None, *, paris: str | None = None
) -> Report:
    """The report of a photograph that is annotated by class, organ and perhaps landmark.

    Args:
        findings: ids of the taxonomy, at least one; `normal` stands alone.
        organ: key of `ORGANS`, or `unknown`.
        landmark: a class name that `landmark_of` knows (`cecum`, `normal-z-line`), or any other place in words.
        paris: Paris class where it is annotated, e.g. `Is`; None says that the shape is not annotated.

    Raises:
        ValueError: no finding, a finding or organ that does not exist, or `normal` beside another finding.
    """
    if not findings:
        raise ValueError("findings: found none, wanted at least one id, e.g. 'normal'")
    for finding in findings:
        name_of(finding)
    if len(findings) > 1 and "normal" in findings:
        raise ValueError(f"findings: found {list(findings)}, wanted 'normal' alone or not at all")
    if organ != "unknown" and organ not in ORGANS:
        raise ValueError(f"organ: found {organ!r}, wanted one of {', '.join(ORGANS)}, unknown")
    unique = tuple(dict.fromkeys(findings))
    return Report(_location(organ, landmark), _morphology(unique, paris), NOT_ANNOTATED, unique)


def _location(organ: str, landmark: str | None) -> str:
    known = landmark_of(landmark) if landmark else None
    place = known.name if known else (landmark or "").replace("_", " ").strip()
    if organ == "unknown" and known:
        organ = known.organ
    parts = [ORGANS.get(organ, "Organ not annotated"), place, "endoscopic image", "light mode not annotated"]
    return ", ".join(part for part in parts if part) + "."


def _morphology(findings: tuple[str, ...], paris: str | None) -> str:
    if findings == ("normal",):
        return _ANNOTATED_NORMAL
    seen = ", ".join(FINDINGS[finding].definition for finding in findings)
    rest = "shape and size" if any(FINDINGS[finding].focal for finding in findings) else "extent"
    shape = f"Paris {paris}, size" if paris else rest
    return f"{seen[0].upper()}{seen[1:]}, {shape} not annotated."
