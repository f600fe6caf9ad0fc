"""Reading a teacher's answer."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.negation import NegatedText, says
from cogalign.cognition.report import SECTIONS
from cogalign.data.annotation.draft import Draft, read_draft, usable_keyword


def read(answer: dict[str, Any]) -> Draft:
    found = read_draft(json.dumps(answer))
    assert isinstance(found, Draft), found
    return found


def test_sections_and_keywords_are_taken_as_they_are(good: dict[str, Any]) -> None:
    draft = read(good)
    assert draft.sections == {name: good[name] for name in SECTIONS}
    assert draft.keywords == good["keywords"] and draft.flags == ()


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```", "Sure! Here {{it}} is:\n{} Hope it helps.",
                                  "<think>maybe {{\"location\": 1}}</think>\n{}", "{}\n{{\"location\": \"x\"}}"])  # fmt: skip
def test_json_is_found_in_what_models_put_around_it(good: dict[str, Any], wrap: str) -> None:
    found = read_draft(wrap.format(json.dumps(good)))
    assert isinstance(found, Draft) and found.sections["location"] == good["location"]


@pytest.mark.parametrize("text", ["", "I cannot help with that.", "{", "[]", '{"a": 1}', '{"location": ', "null"])
def test_nonsense_is_told_by_the_check_json(text: str) -> None:
    (remark,) = read_draft(text)  # type: ignore[misc]
    assert remark.check == "json"


def test_an_answer_that_was_cut_off_is_told_so() -> None:
    (remark,) = read_draft('{"location": "Col', cut=True)  # type: ignore[misc]
    assert "token limit" in remark.text


@pytest.mark.parametrize(("value", "check"), [("", "sections"), (None, "sections"), (["x"], "sections"), ("Colon.", "sections"),
                                              ("word " * 300, "sections"), ("结肠 视野 清晰 可见 " * 3, "language")])  # fmt: skip
def test_sections_are_bounded_english_texts(good: dict[str, Any], value: Any, check: str) -> None:
    found = read_draft(json.dumps({**good, "location": value}))
    assert isinstance(found, list) and [remark.check for remark in found] == [check]


def test_markdown_and_a_repeated_heading_go(good: dict[str, Any]) -> None:
    text = "1. Location & Imaging Environment: **Colon**, well distended lumen with small bubbles"
    draft = read({**good, "location": text})
    assert draft.sections["location"] == "Colon, well distended lumen with small bubbles."


def test_what_no_file_can_hold_is_replaced(good: dict[str, Any]) -> None:
    text = json.dumps(good).replace("Colon, well", "Colon\\ud800\\u0000, well")
    found = read_draft(text)
    assert isinstance(found, Draft) and found.sections["location"].startswith("Colon? , well")


@pytest.mark.parametrize("words", [
    ["colon", "well distended"], ["colon", "colon", "clear view"], ["colon", "stomach", "clear view"],
    ["colon", "the", "clear view"], [], None, "colon", ["colon", 3, "clear view"],
    ["colon", "well distended lumen with a clear view", "small bubbles"],
])  # fmt: skip
def test_keywords_that_fail_are_replaced_by_extracted_ones_and_flagged(good: dict[str, Any], words: Any) -> None:
    answer = {**good, "keywords": {**good["keywords"], "location": words}}
    draft = read(answer)
    assert [flag.check for flag in draft.flags] == ["keywords_extracted"]
    assert len(set(draft.keywords["location"])) == 3 and draft.keywords["morphology"] == good["keywords"]["morphology"]
    assert all(usable_keyword(word, draft.sections["location"]) is None for word in draft.keywords["location"])


def test_a_keyword_without_its_negation_is_replaced(good: dict[str, Any]) -> None:
    answer = {**good, "keywords": {**good["keywords"], "morphology": ["sharp border", "reddish", "ulcer"]}}
    draft = read(answer)
    assert "ulcer" not in draft.keywords["morphology"] and draft.flags
    assert usable_keyword("ulcer", good["morphology"]) == "is said with the other sign"
    assert usable_keyword("no ulcer", good["morphology"]) is None


def test_without_any_keywords_all_are_extracted(good: dict[str, Any]) -> None:
    del good["keywords"]
    draft = read(good)
    assert [len(words) for words in draft.keywords.values()] == [3, 3, 3]


def test_a_section_that_cannot_give_three_keywords_is_a_failure(good: dict[str, Any]) -> None:
    found = read_draft(json.dumps({**good, "location": "It is in the colon.", "keywords": {}}))
    assert isinstance(found, list) and [remark.check for remark in found] == ["keywords"]


@given(words=st.lists(st.sampled_from(("no", "ulcer", "polyp", "smooth", "mucosa", "the", "and", "red", "vessels", ",", "folds",
                                       "without", "or", "annotated", "pale")), min_size=4, max_size=25),
       picked=st.lists(st.integers(0, 24), min_size=3, max_size=3))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whatever_is_answered_keywords_stand_in_their_section_with_its_sign(
    words: list[str], picked: list[int]
) -> None:
    text = " ".join(words)
    answer: dict[str, Any] = dict.fromkeys(SECTIONS, text)
    answer["keywords"] = {name: [words[index % len(words)] for index in picked] for name in SECTIONS}
    found = read_draft(json.dumps(answer))
    if isinstance(found, Draft):
        for name in SECTIONS:
            section = found.sections[name]
            assert len(set(found.keywords[name])) == 3
            for word in found.keywords[name]:
                assert word in section.casefold() and "annotated" not in word
                assert says(NegatedText(section), word, NegatedText(section))


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read(text: str) -> None:
    found = read_draft(text)
    assert isinstance(found, Draft) or found
