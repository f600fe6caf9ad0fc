"""The gate: why a counterfactual is not good enough to be used. Pure; a measure that is missing is not judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogalign.recipe import QualitySettings

SEAM = "visible seam"
RESIDUAL_SEGMENTER = "residual lesion (segmenter)"
RESIDUAL_CLASSIFIER = "residual lesion (classifier)"
REALISM = "unlike real normals"
REASONS = (RESIDUAL_SEGMENTER, RESIDUAL_CLASSIFIER, SEAM, REALISM)
_LIMITS = {
    RESIDUAL_SEGMENTER: ("residual_segmenter", "max_residual_segmenter"),
    RESIDUAL_CLASSIFIER: ("residual_classifier", "max_residual_classifier"),
    SEAM: ("seam", "max_seam"),
    REALISM: ("realism", "max_realism"),
}
JUDGED = {
    "removal": REASONS,
    "control": (SEAM,),
    "transplant": (SEAM,),
    "background": (SEAM,),
}
"""What is judged of each intervention: only a removal must leave no lesion and look like a normal."""


def failures(quality: Mapping[str, Any], intervention: str | None, settings: QualitySettings) -> list[str]:
    """The reasons for which a counterfactual fails; none if it passes.

    Args:
        quality: its measures; None or absent ones are not judged.
        intervention: what was done.
        settings: the limits; None is no limit, and a value equal to a limit passes.
    """
    reasons = []
    for reason in JUDGED.get(intervention or "", ()):
        measure, limit_name = _LIMITS[reason]
        value, limit = quality.get(measure), getattr(settings, limit_name)
        if value is not None and limit is not None and value > limit:
            reasons.append(reason)
    return reasons


def limits(settings: QualitySettings) -> dict[str, float | None]:
    """The limit of each judged measure, by the measure's name."""
    return {measure: getattr(settings, limit_name) for measure, limit_name in _LIMITS.values()}
