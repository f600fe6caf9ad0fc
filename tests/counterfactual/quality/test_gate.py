from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual.quality.gate import REASONS, failures, limits
from cogalign.recipe import INTERVENTIONS, QualitySettings

LIMITS = QualitySettings(max_residual_segmenter=0.5, max_residual_classifier=0.5, max_seam=2.0, max_realism=2.0)
BAD = {"residual_segmenter": 0.9, "residual_classifier": 0.9, "seam": 9.0, "realism": 9.0}


@pytest.mark.parametrize(
    ("measure", "reason"),
    [
        ("residual_segmenter", "residual lesion (segmenter)"),
        ("residual_classifier", "residual lesion (classifier)"),
        ("seam", "visible seam"),
        ("realism", "unlike real normals"),
    ],
)
def test_each_measure_has_its_reason(measure: str, reason: str) -> None:
    good = dict.fromkeys(BAD, 0.1)
    assert failures(good, "removal", LIMITS) == []
    assert failures(good | {measure: BAD[measure]}, "removal", LIMITS) == [reason]


def test_only_a_removal_is_judged_by_more_than_its_seam() -> None:
    assert failures(BAD, "removal", LIMITS) == list(REASONS)
    for intervention in ("control", "transplant", "background"):
        assert failures(BAD, intervention, LIMITS) == ["visible seam"]


def test_a_limit_itself_passes_and_no_limit_judges_nothing() -> None:
    assert failures(limits(LIMITS), "removal", LIMITS) == []
    off = replace(LIMITS, max_residual_segmenter=None, max_residual_classifier=None, max_seam=None, max_realism=None)
    assert failures(BAD, "removal", off) == []


@settings(max_examples=40, deadline=None)
@given(
    quality=st.dictionaries(st.sampled_from(sorted(BAD)), st.none() | st.floats(0, 10)),
    intervention=st.sampled_from(INTERVENTIONS),
)
def test_what_was_not_measured_is_not_judged(quality: dict[str, float | None], intervention: str) -> None:
    there = {name: value for name, value in quality.items() if value is not None}
    assert failures(quality, intervention, LIMITS) == failures(there, intervention, LIMITS)
    assert failures({}, intervention, LIMITS) == []
