"""What findings are called in reports, and which of them a report of another may mention.

Both lists are **our choice**, from the taxonomy's synonyms and what reports of a finding commonly describe.
"""

from __future__ import annotations

import re

from cogalign.cognition.taxonomy import FINDINGS

ENVIRONMENT = ("reduced_view", "instrument")
"""What is in the way of a view may be mentioned in any report."""
BESIDE = {
    "polyp": ("erythema",),
    "erosion": ("erythema", "edema", "inflammation", "aphthoid_ulcer"),
    "ulcer": ("erythema", "edema", "inflammation", "aphthoid_ulcer"),
    "aphthoid_ulcer": ("ulcer", "erosion", "erythema", "edema", "inflammation"),
    "angiectasia": ("erythema",),
    "tumor": ("erythema", "edema"),
    "submucosal_tumor": ("tumor",),
    "esophagitis": ("erosion", "ulcer", "erythema", "edema", "inflammation"),
    "barretts": ("erythema",),
    "ulcerative_colitis": (
        "erosion", "ulcer", "aphthoid_ulcer", "erythema", "edema", "inflammation", "bleeding",
    ),
    "inflammation": ("erythema", "edema"),
    "edema": ("inflammation", "erythema"),
    "stenosis": ("inflammation", "edema", "erythema"),
    "dyed_lifted_polyp": ("polyp",),
    "resection_site": ("polyp", "dyed_lifted_polyp", "ulcer", "erythema"),
    "varices": ("venous_lesion", "hemorrhoids"),
    "hemorrhoids": ("varices", "venous_lesion"),
    "venous_lesion": ("varices",),
}  # fmt: skip
"""Findings that the description of another may name: what it consists of, or what surrounds it."""
SIGNS = (
    "lesion",
    "mass",
    "nodule",
    "abnormality",
    "mucosal break",
    "mucosal defect",
    "polypoid",
    "ulcerated",
    "eroded",
)
"""Words that say something was found, without its name."""

_NO_TERMS = {"venous", "venous structure", "polypoid lesion", "short-segment-barretts", "e", "blood in lumen"}
"""Synonyms that name data sets' classes, but in a report describe other things."""


def _terms(finding_id: str) -> tuple[str, ...]:
    finding = FINDINGS[finding_id]
    names = dict.fromkeys((finding.name, *finding.synonyms))
    return tuple(
        name
        for name in names
        # Codes of two letters are words ("BE"), those with digits are classes.
        if len(re.sub(r"[^A-Za-z]", "", name)) >= 3 and not re.search(r"[\d(]|grade", name) and name not in _NO_TERMS
    )


TERMS: dict[str, tuple[str, ...]] = {key: _terms(key) for key, finding in FINDINGS.items() if not finding.normal}
"""What each finding is called in the text of a report; `normal` has no terms."""


def allowed_beside(findings: tuple[str, ...]) -> frozenset[str]:
    """Findings whose names a report of these findings may hold."""
    beside = {other for finding in findings for other in BESIDE.get(finding, ())}
    return frozenset((*findings, *beside, *ENVIRONMENT))
