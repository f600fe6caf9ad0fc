import pytest

from cogalign.cognition.anatomy import LANDMARKS, ORGANS, organ_in
from cogalign.cognition.keywords import count_found, extract
from cogalign.cognition.report import Report, parse, render
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.cognition.templates import (
    NOT_ANNOTATED,
    negative_sections,
    normal_sections,
    remaining_report,
    removal_report,
    template_report,
    transplant_report,
)

LESION = Report("Stomach, white light.", "Sessile elevated lesion.", "Irregular vessels.", ("polyp", "erosion"))
NORMAL = Report("Colon, white light.", *normal_sections(), ("normal",))


def test_removal_keeps_the_location_and_makes_the_rest_normal() -> None:
    assert removal_report(LESION) == Report(LESION.location, *normal_sections(), ("normal",))


def test_removal_from_a_photograph_reads_like_a_normal_photograph() -> None:
    removed = removal_report(template_report(["polyp"], "colon"))
    assert removed == template_report(["normal"], "colon")


def test_what_remains_keeps_its_own_clauses_where_sections_can_be_taken_apart() -> None:
    both = Report(
        "Colon, white light.", "Sessile polyp; round ulcer.", "Dilated vessels; absent vessels.", ("polyp", "ulcer")
    )
    kept = remaining_report(both, ["ulcer"], "colon")
    assert kept == Report(both.location, "round ulcer.", "absent vessels.", ("ulcer",))


def test_what_remains_is_told_by_the_template_where_they_cannot() -> None:
    kept = remaining_report(LESION, ["erosion"], "stomach")
    assert kept == Report(LESION.location, *sections(template_report(["erosion"], "stomach")), ("erosion",))
    photograph = template_report(["polyp", "erosion"], "colon")
    assert remaining_report(photograph, ["polyp"], "colon") == template_report(["polyp"], "colon")


@pytest.mark.parametrize("remaining", [[], ["ulcer"], ["polyp", "ulcer"]])
def test_only_what_was_there_can_remain(remaining: list[str]) -> None:
    with pytest.raises(ValueError, match="wanted some of"):
        remaining_report(LESION, remaining)


def sections(report: Report) -> tuple[str, str]:
    return report.morphology, report.microvasculature


def test_transplant_takes_the_location_of_the_background_and_the_rest_of_the_lesion() -> None:
    report = transplant_report(LESION, NORMAL)
    assert report == Report(NORMAL.location, LESION.morphology, LESION.microvasculature, LESION.diagnosis)


@pytest.mark.parametrize("organ", [*ORGANS, "unknown"])
@pytest.mark.parametrize("finding", FINDINGS)
def test_a_template_gives_nine_keywords_and_parses_back(finding: str, organ: str) -> None:
    report = template_report([finding], organ)
    keywords = extract(report)
    assert [len(words) for words in keywords.values()] == [3, 3, 3]
    assert count_found(render(report), keywords) == 9
    assert parse(render(report)) == report


@pytest.mark.parametrize("landmark", LANDMARKS)
def test_a_landmark_is_named_and_gives_the_organ(landmark: str) -> None:
    report = template_report(["normal"], landmark=landmark)
    assert LANDMARKS[landmark].name in report.location
    assert organ_in(report.location) == LANDMARKS[landmark].organ


def test_a_template_says_only_what_is_annotated() -> None:
    assert template_report(["polyp"], "colon") == Report(
        "Colon, endoscopic image, light mode not annotated.",
        "Raised focal lesion, shape and size not annotated.",
        NOT_ANNOTATED,
        ("polyp",),
    )
    assert (
        template_report(["polyp"], "colon", paris="Is").morphology
        == "Raised focal lesion, Paris Is, size not annotated."
    )
    assert "Paris" not in template_report(["polyp"], "colon").morphology
    assert template_report(["esophagitis"]).morphology == "Inflamed esophageal mucosa, extent not annotated."
    assert template_report(["normal"]).location.startswith("Organ not annotated")
    assert template_report(["normal"], "colon", "hepatic_flexure").location.startswith("Colon, hepatic flexure, ")


def test_two_findings_are_both_described() -> None:
    report = template_report(["polyp", "erosion", "polyp"], "stomach")
    assert report.diagnosis == ("polyp", "erosion")
    assert report.morphology == "Raised focal lesion, shallow mucosal break, shape and size not annotated."


@pytest.mark.parametrize(
    ("findings", "organ", "message"),
    [
        ([], "colon", "findings: found none"),
        (["polpy"], "colon", "nearest: 'polyp'"),
        (["normal", "polyp"], "colon", "'normal' alone"),
        (["polyp"], "liver", "organ: found 'liver'"),
    ],
)
def test_a_wrong_annotation_is_an_error_that_names_the_field(findings, organ, message) -> None:
    with pytest.raises(ValueError, match=message):
        template_report(findings, organ)


def test_the_relief_of_an_organ_is_told_and_an_unknown_one_falls_back() -> None:
    assert "rugal" in negative_sections("stomach")[0]
    assert negative_sections("unknown") == normal_sections()
    assert len({negative_sections(organ) for organ in ORGANS}) == len(ORGANS)
