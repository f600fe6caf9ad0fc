"""Which findings are near to each other: a finer finding to its single label, and findings of one kind.

The taxonomy itself knows only `parent`. The kinds are **our choice**: findings that look alike and that endoscopists
confuse, none of which is the other. What is in no kind is near to nothing, above all `normal`: to miss a lesion is never
a near miss.
"""

from __future__ import annotations

from cogalign.cognition.taxonomy import FINDINGS, single_label

KINDS: dict[str, tuple[str, ...]] = {
    "mucosal break": ("erosion", "ulcer"),
    "elevated lesion": ("polyp", "tumor", "submucosal_tumor"),
    "vascular lesion": ("angiectasia", "varices"),
    "inflamed mucosa": ("erythema", "inflammation", "esophagitis", "ulcerative_colitis"),
    "lymphatic lesion": ("lymphangiectasia", "lymph_follicle"),
    "treated lesion": ("dyed_lifted_polyp", "resection_site"),
}
"""Single labels of one kind."""

SAME_LABEL = 0.5
"""Nearness of a finer finding and its single label, and of two finer findings of one label."""
SAME_KIND = 0.25
"""Nearness of two findings whose single labels are of one kind."""

_KIND_OF = {finding: kind for kind, findings in KINDS.items() for finding in findings}


def nearness(one: str, other: str) -> float:
    """1 for the same finding, `SAME_LABEL` or `SAME_KIND` for relatives, else 0; symmetric.

    Unknown ids are near to themselves only.
    """
    if one == other:
        return 1.0
    if one not in FINDINGS or other not in FINDINGS:
        return 0.0
    labels = single_label(one), single_label(other)
    if labels[0] == labels[1]:
        return SAME_LABEL
    kinds = _KIND_OF.get(labels[0]), _KIND_OF.get(labels[1])
    return SAME_KIND if kinds[0] is not None and kinds[0] == kinds[1] else 0.0
