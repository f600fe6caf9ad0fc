"""What of a teacher's report agrees with its case."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.annotation.checks import FAILURES, FLAGS, failures, flags
from cogalign.data.annotation.draft import Draft, read_draft
from cogalign.data.annotation.facts import Facts
from cogalign.data.annotation.position import Place
from cogalign.data.annotation.vocabulary import BESIDE, TERMS, allowed_beside

UPPER_LEFT = Place("polyp", 0.25, 0.25, 0.12, 0.12, 0.37, 0.37, 0.06)
POLYP = Facts(("polyp",), "colon", None, (UPPER_LEFT,), None, None, None, None)
NORMAL = Facts(("normal",), "colon", None, (), None, None, None, None)


def draft(good: dict[str, Any], **sections: str) -> Draft:
    """A draft with sections of its own; its keywords are not looked at."""
    return Draft({**{name: good[name] for name in ("location", "morphology", "microvasculature")}, **sections}, {})


def refused(made: Draft, facts: Facts) -> set[str]:
    return {remark.check for remark in failures(made, facts)}


def test_a_good_report_passes_without_a_flag(good: dict[str, Any]) -> None:
    found = read_draft(json.dumps(good))
    assert isinstance(found, Draft)
    assert failures(found, POLYP) == [] and flags(found, POLYP) == []


@pytest.mark.parametrize("text", [
    "Smooth mucosa with intact folds, no polyp, no ulcer.",
    "Smooth mucosa with intact folds. A polyp is not seen.",
    "Pink mucosa without any focal lesion, folds intact.",
    "Normal folds, no lesions, no bleeding.",
])  # fmt: skip
def test_a_gold_finding_must_not_be_denied(good: dict[str, Any], text: str) -> None:
    assert refused(draft(good, morphology=text), POLYP) == {"finding_negated"}


@pytest.mark.parametrize("text", [
    "A sessile elevation with a sharp border, no other lesion, no ulcer.",
    "A small polyp, no further polyps, folds intact.",
    "Reddish polypoid elevation without ulceration, without bleeding.",
    "One raised reddish polyp with a little erythema around it.",
])  # fmt: skip
def test_descriptions_of_the_finding_pass(good: dict[str, Any], text: str) -> None:
    assert refused(draft(good, morphology=text), POLYP) == set()


@pytest.mark.parametrize(("text", "word"), [
    ("A raised polyp beside a deep ulcer with a white base.", "ulcer"),
    ("A raised polyp and an angiodysplasia on the fold.", "angiodysplasia"),
    ("A raised polyp with active bleeding from its top.", "bleeding"),
    ("A raised polyp, perhaps an adenocarcinoma of the wall.", "adenocarcinoma"),
])  # fmt: skip
def test_a_finding_that_is_not_gold_must_not_be_affirmed(good: dict[str, Any], text: str, word: str) -> None:
    (remark,) = [remark for remark in failures(draft(good, morphology=text), POLYP) if remark.check == "finding_added"]
    assert word in remark.text.lower()


@pytest.mark.parametrize("text", [
    "A flat red spot on the fold, an angiectasia.",
    "A small raised lesion on the fold.",
    "Patchy erythematous mucosa with intact folds.",
    "The folds are ulcerated along the margin.",
])  # fmt: skip
def test_nothing_may_be_found_in_a_normal_case(good: dict[str, Any], text: str) -> None:
    assert "finding_added" in refused(draft(good, morphology=text), NORMAL)


@pytest.mark.parametrize("text", [
    "Smooth pink mucosa, no polyp, no ulcer, no erosion, no mass, no bleeding.",
    "Intact haustral folds without focal lesion; blood vessels are regular.",
    "Smooth folds, no ulcer, erosion or bleeding.",
])  # fmt: skip
def test_negatives_are_no_findings(good: dict[str, Any], text: str) -> None:
    assert refused(draft(good, morphology=text), NORMAL) == set()


def test_what_hides_the_mucosa_may_be_told_in_any_report(good: dict[str, Any]) -> None:
    text = "Colon with some residual stool and biopsy forceps in view."
    assert refused(draft(good, location=text, morphology="Smooth pink folds, no ulcer."), NORMAL) == set()


@pytest.mark.parametrize("finding", sorted(set(FINDINGS) - {"normal"}))
def test_every_finding_may_be_called_by_its_names(good: dict[str, Any], finding: str) -> None:
    facts = replace(NORMAL, findings=(finding,), organ="unknown")
    for term in TERMS[finding]:
        made = draft(
            good, morphology=f"The photograph shows {term} on smooth mucosa.", microvasculature="Fine vessels here."
        )
        assert refused(made, facts) == set(), term
        assert refused(draft(good, morphology=f"Smooth mucosa, no {term}.", microvasculature="Fine."), facts) == {
            "finding_negated"
        }, term


def test_the_lists_of_what_may_stand_beside_name_findings() -> None:
    assert {*BESIDE, *(other for others in BESIDE.values() for other in others)} <= set(TERMS)
    assert "tumor" in allowed_beside(("submucosal_tumor",)) and "ulcer" not in allowed_beside(("polyp",))


def test_the_organ_must_be_the_cases(good: dict[str, Any]) -> None:
    stomach = draft(good, location="Stomach, gastric antrum with clear view and good distension.")
    assert refused(stomach, POLYP) == {"organ"}
    assert refused(stomach, replace(POLYP, organ="unknown")) == set()
    unnamed = draft(good, location="A tubular lumen with clear view and good distension.")
    assert [remark.check for remark in flags(unnamed, POLYP)] == ["organ_unnamed"]


def test_the_location_holds_without_the_lesion(good: dict[str, Any]) -> None:
    assert refused(draft(good, location="Colon with a polyp on the wall, clear view."), POLYP) == {"location"}
    ulcerative = replace(NORMAL, findings=("ulcerative_colitis",))
    text = "Colon with ulcerative colitis, clear view."
    calm = draft(good, location=text, morphology="Granular red mucosa with erosions and contact bleeding.")
    assert refused(calm, ulcerative) == set()


@pytest.mark.parametrize("text", ["A polyp in the lower right of the image.", "A raised lesion at 4 o'clock.",
                                  "A polyp in the right half of the frame."])  # fmt: skip
def test_a_position_must_be_that_of_the_mask(good: dict[str, Any], text: str) -> None:
    assert refused(draft(good, morphology=text), POLYP) == {"position"}
    assert refused(draft(good, morphology=text), replace(POLYP, places=())) == set()


@pytest.mark.parametrize("text", ["A polyp, as annotated, on the fold.", "According to the label a polyp is there.",
                                  "The given diagnosis fits the raised polyp.", "The mask covers a raised polyp."])  # fmt: skip
def test_the_gold_is_no_source(good: dict[str, Any], text: str) -> None:
    assert refused(draft(good, morphology=text), POLYP) == {"source"}


@pytest.mark.parametrize("text", ["A polyp here. The diagnosis result is Ulcerative colitis.",
                                  "A polyp. 3. Surface Texture & Microvascular Architecture: fine."])  # fmt: skip
def test_a_section_must_not_break_the_report(good: dict[str, Any], text: str) -> None:
    assert "template" in refused(draft(good, morphology=text), POLYP)


def test_paris_class_size_device_light_and_grade_are_flagged_unless_told(good: dict[str, Any]) -> None:
    text = "A polyp of 6 mm, Paris Is, seen with NBI by a PillCam SB3, Mayo grade 2."
    made = draft(good, morphology=text)
    assert {remark.check for remark in flags(made, POLYP)} == {
        "size_invented", "paris_invented", "device_invented", "light_invented", "grade_invented"
    }  # fmt: skip
    told = replace(POLYP, paris="Is", light="NBI", grade="Mayo grade 2")
    assert {remark.check for remark in flags(made, told)} == {"size_invented", "device_invented"}
    assert refused(made, told) == set()
    assert refused(made, replace(told, paris="IIa")) == {"paris"}


def test_several_findings_want_a_clause_each(good: dict[str, Any]) -> None:
    both = replace(POLYP, findings=("polyp", "erosion"), places=())
    one = draft(good, morphology="A raised polyp and an erosion.", microvasculature="Regular pits; red base.")
    assert [remark.text for remark in flags(one, both)] == ["morphology: 1 clauses for 2 findings"]


def test_all_checks_have_a_name_and_documentation() -> None:
    from pathlib import Path

    page = (Path(__file__).resolve().parents[3] / "docs" / "annotation.md").read_text()
    for name in (
        *FAILURES,
        *FLAGS,
        "json",
        "sections",
        "language",
        "keywords",
        "keywords_extracted",
        "image",
        "refused",
    ):
        assert f"`{name}`" in page, name
