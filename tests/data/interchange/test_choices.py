from __future__ import annotations

import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.interchange.choices import choices_in, final_answer, letter_of, with_choices

CHOICES = {"A": "polyp", "B": "no polyp", "C": "ulcer", "D": "dyed lifted polyp", "E": "None"}
WORDS = (
    "polyp",
    "ulcer",
    "erosion",
    "cecum",
    "pylorus",
    "Barrett's esophagus",
    "blood, fresh",
    "5 mm",
    "none of these",
)


@pytest.mark.parametrize(
    "text",
    ["D", "d", "D.", "(D)", "<D>", "[D]", "**D**", "D)", "D: dyed lifted polyp", "<D> dyed lifted polyp", "D. Polyp it is not",
     "Dyed lifted polyp.", "It is a dyed-lifted polyp", "The answer is D", "the correct answer is (D).", "Answer: D",
     "Final answer: **D**", "<answer> D </answer>", "<think>A or B? The answer is A.</think><answer>D</answer>",
     "<think>first A</think> D", "I thought of option A, but the answer is D", " D\n", "D\nbecause of the blue dye",
     "<answer>D", "The answer is D because of the dye", "Answer: A dyed lifted polyp", "Option D"],
)  # fmt: skip
def test_ways_of_saying_the_fourth_choice(text: str) -> None:
    assert letter_of(text, CHOICES) == "D"


@pytest.mark.parametrize(
    "text",
    ["", "  ", "a polyp or an ulcer", "Z", "The answer is Z", "colon", "A or C", "...", "Done", "A polyp and an ulcer"],
)
def test_what_means_no_choice_or_several(text: str) -> None:
    assert letter_of(text, CHOICES) is None


def test_a_choice_inside_a_longer_one_does_not_count() -> None:
    assert letter_of("There is no polyp here", CHOICES) == "B"
    assert letter_of("I see a polyp", CHOICES) == "A"
    assert letter_of("none", CHOICES) == "E"


def test_choices_that_stand_in_a_question() -> None:
    assert choices_in("What is it? <A> polyp, <B> dyed lifted polyp, <C> ulcer.") == {
        "A": "polyp", "B": "dyed lifted polyp", "C": "ulcer."
    }  # fmt: skip
    assert choices_in("What?\nA. polyp\nB. ulcer, deep\n") == {"A": "polyp", "B": "ulcer, deep"}
    assert choices_in("What?\n(A) polyp\n(B) ulcer") == {"A": "polyp", "B": "ulcer"}
    for none in ("", "What is <A>?", "<B> polyp, <C> ulcer", "Is it an ulcer? A. Smith asks", "<A> x <A> y"):
        assert choices_in(none) == {}


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=2, max_size=6, unique=True),
    pick=st.integers(0, 5),
    way=st.integers(0, 5),
)
def test_choices_are_read_back_from_a_question_and_an_answer(words: list[str], pick: int, way: int) -> None:
    choices = dict(zip(string.ascii_uppercase, words, strict=False))
    assert choices_in(with_choices("What is seen?", choices)) == choices
    letter = list(choices)[pick % len(choices)]
    text = choices[letter]
    ways = [
        letter,
        f"<{letter}> {text}",
        f"{letter}. {text}",
        f"The answer is {letter}.",
        text,
        f"<answer> {letter} </answer>",
    ]
    assert letter_of(ways[way], choices) == letter


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), choices=st.dictionaries(st.sampled_from("ABCDE"), st.text(max_size=8), max_size=5))
def test_any_text_gives_a_choice_or_none(text: str, choices: dict[str, str]) -> None:
    assert letter_of(text, choices) in (*choices, None)
    assert choices_in(text) == {} or len(choices_in(text)) > 1
    assert final_answer(text) == final_answer(text).strip()


def test_the_choices_own_words_are_no_article() -> None:
    choices = {"A": "dyed polyp " + "with a stalk " * 60, "B": "ulcer"}
    assert letter_of("The answer is A dyed polyp " + "with a stalk " * 60, choices) == "A"
    assert letter_of("The answer is A polyp\nThe other option B", choices) == "B"
    assert letter_of("Answer A\nA dyed polyp", CHOICES) == "A"
    assert letter_of("The answer  is :  ** A", CHOICES) == "A"
    assert choices_in("<A>\n polyp ,\n<B>ulcer\nmore") == {"A": "polyp", "B": "ulcer"}


def test_long_hostile_texts_are_read_in_time() -> None:
    # In a process of its own, as an expression that goes back and forth cannot be stopped: a quadratic one takes minutes.
    program = """
from cogalign.data.interchange.choices import choices_in, letter_of
n = 100_000
choices = {"A": "polyp", "B": "ulcer"}
for text in ("answer A " * n, "answer" + " " * n + "x", "answer is " * n, "answer A dyed " * n, "answer" + " *" * n,
             "<think>" * n, "*" * n, "(" + " " * n, "option:" + "\\t_" * n):
    letter_of(text, choices)
for text in ("<A>" + " " * n + "x", "A. x" + " " * n + "y", "A" + "." * n, "<A>" * n, "<A> " + "," * n, " " * n,
             "A. x" + " ;" * n + "y", "<A> x" + " \\n" * n + "<B> y"):
    choices_in(text)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
