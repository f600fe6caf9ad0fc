import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.evaluation.location import location_correct, organs_named

texts = st.lists(
    st.sampled_from(["colon", "gastric", "small bowel", "Z-line", "oesophagus", "white light", "lumen,", "caecum"]),
    max_size=5,
).map(" ".join)


@pytest.mark.parametrize(
    ("text", "organs"),
    [
        ("Oesophagus, distal third", {"esophagus"}),
        ("gastric body under white light", {"stomach"}),
        ("terminal ileum", {"small_bowel"}),
        ("from the small bowel into the caecum", {"small_bowel", "colon"}),
        ("seen at colonoscopy", set()),
        ("", set()),
    ],
)
def test_organs_are_named_by_words_parts_and_adjectives(text: str, organs: set[str]) -> None:
    assert organs_named(text) == organs


def test_the_right_organ_counts_and_another_does_not() -> None:
    assert location_correct("In the colon, white light", "Colon, narrow band", "colon") is True
    assert location_correct("In the stomach", "Colon, narrow band", "colon") is False
    assert location_correct("", "Colon, narrow band", "colon") is False


def test_naming_every_organ_is_no_answer() -> None:
    assert location_correct("esophagus, stomach, small bowel or colon", "Colon", "colon") is False


def test_a_neighbour_that_the_gold_report_names_may_be_named() -> None:
    gold = "Cardia of the stomach, seen from the esophagus"
    assert location_correct("stomach", gold, "stomach") is True
    assert location_correct(gold, gold, "stomach") is True
    assert location_correct("esophagus", gold, "stomach") is False


def test_the_gold_report_says_where_it_is_when_the_case_does_not() -> None:
    assert location_correct("rectum", "Large bowel", "unknown") is True
    assert location_correct("stomach", "Large bowel") is False


def test_an_unknown_place_is_not_judged() -> None:
    assert location_correct("colon", "white light, clear view", "unknown") is None


@settings(max_examples=40, deadline=None)
@given(texts, st.sampled_from(["esophagus", "stomach", "small_bowel", "colon", "unknown"]))
def test_repeating_the_gold_section_is_never_wrong(gold: str, organ: str) -> None:
    judged = location_correct(gold, gold, organ)
    assert judged is not False or not organs_named(gold)
