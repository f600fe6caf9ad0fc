from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.cards.template import alternatives, expand, expand_all, filled_regex, placeholders, regex_of

names = st.text("abcXYZ019_-. ()[]+*?", min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(names, names)
def test_what_a_template_expands_to_is_what_its_pattern_matches(first: str, second: str) -> None:
    template = "a+(b)/{one}/x_{two}.{suffix}"
    fields = {"one": first, "two": second, "suffix": "JPG"}
    path = expand(template, fields)
    assert path is not None
    match = regex_of(template).fullmatch(path)
    assert match is not None and match["g_one"] == first and match["g_two"] == second
    assert filled_regex(template, fields).fullmatch(path)


def test_placeholders_stay_in_one_folder_and_stars_cross_folders_only_in_pairs() -> None:
    assert not regex_of("{a}/x.jpg").fullmatch("one/two/x.jpg")
    assert not regex_of("*/x.jpg").fullmatch("one/two/x.jpg")
    assert regex_of("**/x.jpg").fullmatch("one/two/x.jpg") and regex_of("**/x.jpg").fullmatch("x.jpg")


def test_expressions_restrict_and_a_repeated_name_means_the_same_text() -> None:
    pattern = regex_of("data_C{center:[1-6]}/images_C{center}/{stem:[0-9]{2,3}}.{suffix}")
    assert pattern.fullmatch("data_C2/images_C2/012.JPEG")
    assert not pattern.fullmatch("data_C2/images_C3/012.jpg")
    assert not pattern.fullmatch("data_C7/images_C7/012.jpg")
    assert not pattern.fullmatch("data_C2/images_C2/0123.jpg")
    assert not pattern.fullmatch("data_C2/images_C2/012.txt")


def test_alternatives_are_separated_outside_braces_alone() -> None:
    assert alternatives("a/{x:b|c}.txt|d.txt") == ["a/{x:b|c}.txt", "d.txt"]
    assert placeholders("{a}-{b}{a}") == ("a", "b")


def test_an_empty_field_gives_no_text_and_rows_give_one_each() -> None:
    assert expand("video-{id}", {"id": ""}) is None and expand("video-{id}", {}) is None
    rows = {"t": [{"c": "x"}, {"c": "y"}, {"c": "x"}, {"c": ""}]}
    assert expand_all("{n}:{t.c}", {"n": "1"}, rows) == ["1:x", "1:y"]
    assert expand_all("{n}", {"n": "1"}, rows) == ["1"]


def test_broken_templates_are_errors() -> None:
    for template, message in (("{a", "not closed"), ("{}", "without a name"), ("{a:(}", "not a valid pattern")):
        with pytest.raises(ValueError, match=message):
            regex_of(template)


@pytest.mark.parametrize("expression", ["(a+)+", "(?:[a-z]*x)*", "(a|ab)+", "((a+)b)*", "(a{1,9}){2,}", r"(\w+\.)*"])
def test_an_expression_that_can_take_for_ever_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="which can take for ever"):
        regex_of("images/{stem:" + expression + "}.jpg")


@pytest.mark.parametrize(
    "expression", ["[0-9]{2,3}", "(?:polyp|ulcer)_[0-9]+", "(?:abc)+", r"[(a+)]+", r"a\(b+\)+", "(?:a?b)?"]
)
def test_other_expressions_are_not_refused(expression: str) -> None:
    regex_of("images/{stem:" + expression + "}.jpg")
