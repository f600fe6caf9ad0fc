"""The offline teacher."""

from dataclasses import replace
from pathlib import Path

import pytest

from cogalign.cognition.anatomy import ORGANS
from cogalign.cognition.report import SECTIONS
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.cognition.templates import NOT_ANNOTATED, remaining_report, removal_report, template_report
from cogalign.data.annotation.checks import failures
from cogalign.data.annotation.facts import Facts, facts_of
from cogalign.data.annotation.position import Place
from cogalign.data.annotation.template import template_draft
from cogalign.data.caseset import read_case_set

UNKNOWN = Facts(("polyp",), "colon", None, (), None, None, None, None)
PLACE = Place("polyp", 0.25, 0.25, 0.12, 0.12, 0.37, 0.37, 0.06)


@pytest.mark.parametrize("finding", list(FINDINGS))
def test_every_finding_passes_the_checks_of_a_teacher(finding: str) -> None:
    places = (replace(PLACE, finding=finding),) if FINDINGS[finding].focal else ()
    for organ in (*ORGANS, "unknown"):
        facts = replace(UNKNOWN, findings=(finding,), organ=organ, places=places)
        assert [remark for remark in failures(template_draft(facts), facts) if remark.check != "source"] == [], organ


def test_where_nothing_more_is_known_it_is_the_template() -> None:
    draft = template_draft(UNKNOWN)
    assert draft.report(("polyp",)) == template_report(("polyp",), "colon")


def test_what_is_annotated_is_told() -> None:
    facts = replace(UNKNOWN, places=(PLACE,), imaging="capsule", light="white light", paris="Is", grade="grade 2")
    sections = template_draft(facts).sections
    assert sections["location"] == "Colon, capsule endoscopy image, white light."
    assert sections["morphology"] == (
        "Raised focal lesion, Paris Is, size not annotated. Grade 2. In the upper left of the image, at about 10 o'clock, "
        "about 6 % of the image area."
    )
    assert sections["microvasculature"] == NOT_ANNOTATED


def test_keywords_stand_in_their_section_and_say_something_of_the_case() -> None:
    draft = template_draft(replace(UNKNOWN, places=(PLACE,), organ="small_bowel"))
    assert draft.keywords["location"] == ["small bowel"] and "microvasculature" not in draft.keywords
    for name in SECTIONS:
        for word in draft.keywords.get(name, ()):
            assert word in draft.sections[name].casefold() and "annotated" not in word


def test_a_counterfactual_of_a_template_does_not_speak_of_the_place() -> None:
    facts = replace(UNKNOWN, places=(PLACE,))
    normal = removal_report(template_draft(facts).report(("polyp",)))
    assert "upper left" not in f"{normal.location} {normal.morphology}"


def test_of_several_findings_each_has_a_clause_that_can_be_taken_out() -> None:
    places = (PLACE, replace(PLACE, finding="erosion", x=0.8, y=0.8))
    both = replace(UNKNOWN, findings=("erosion", "polyp"), places=places)
    report = template_draft(both).report(both.findings)
    left = remaining_report(report, ["polyp"], "colon")
    assert "upper left" in left.morphology and "lower right" not in left.morphology and "break" not in left.morphology
    unassigned = replace(both, places=tuple(replace(place, finding="") for place in places))
    whole = template_draft(unassigned).report(both.findings)
    assert ";" not in whole.morphology and "upper left" in whole.morphology
    assert remaining_report(whole, ["polyp"], "colon") == template_report(("polyp",), "colon")


def test_facts_come_from_organ_class_boxes_and_mask(cases: Path) -> None:
    case_set = read_case_set(cases)
    lesion, normal = (facts_of(case_set, case_set.by_id[name]) for name in ("case-0", "case-1"))
    assert normal.places == () and normal.landmark == "cecum" and lesion.landmark is None
    (place,) = lesion.places
    assert place.sides == "upper left" and place.share == pytest.approx(24 * 16 / (96 * 64)) and not place.boxed


@pytest.mark.parametrize(("attributes", "grade"), [
    ({"class": "ulcerative-colitis-grade-2"}, "Mayo grade 2"), ({"class": "Ulcerative_colitis grade 0-1"}, "Mayo grade 0-1"),
    ({"class": "esophagitis-b-d"}, "Los Angeles grade B to D"), ({"mayo": 3}, "Mayo grade 3"), ({"grade": "B"}, "grade B"),
    ({"class": "polyps"}, None), ({"class": ["esophagitis-a"]}, None), ({"mayo": "unknown"}, None), ({"grade": True}, None),
])  # fmt: skip
def test_grades_are_read_from_attributes_and_class_names(
    cases: Path, attributes: dict[str, object], grade: str | None
) -> None:
    case_set = read_case_set(cases)
    case = replace(case_set.by_id["case-1"], attributes=attributes)
    assert facts_of(case_set, case).grade == grade


@pytest.mark.parametrize(
    ("told", "paris"), [("0-Is", "Is"), ("Paris IIa", "IIa"), ("Ip", "Ip"), ("unknown", None), (3, None)]
)
def test_paris_classes_lose_their_prefix(cases: Path, told: object, paris: str | None) -> None:
    case_set = read_case_set(cases)
    case = replace(case_set.by_id["case-1"], attributes={"paris": told})
    assert facts_of(case_set, case).paris == paris
