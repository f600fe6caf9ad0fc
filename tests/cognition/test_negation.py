import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.negation import Mentions, NegatedText, says, split_negation

AFFIRMED = [
    ("Shallow erosion with halo.", "erosion"),
    ("Several EROSIONS.", "erosion"),
    ("No ulcer, smooth surface.", "smooth"),
    ("No ulcer; erosion.", "erosion"),
    ("No ulcer but erosion.", "erosion"),
    ("No ulcer and smooth pale surface.", "smooth"),
    ("Not only erosion but ulcer.", "erosion"),
    ("Not without erosion.", "erosion"),
    ("Erosion cannot be excluded.", "erosion"),
    ("Non-bleeding ulcer.", "ulcer"),
    ("White-light view.", "white light"),
    ("Oedematous folds.", "edematous"),
    ("Polyp of 8.5 mm.", "8.5 mm"),
    ("Without ulcer\nErosion", "erosion"),
    ("No ulcer (erosion).", "erosion"),
]
NEGATED = [
    ("No erosion.", "erosion"),
    ("Without any deep erosions.", "erosion"),
    ("No ulcer, erosion or bleeding.", "erosion"),
    ("No ulcer, erosion or bleeding.", "bleeding"),
    ("No ulcer and erosion.", "erosion"),
    ("Neither ulcer nor erosion.", "erosion"),
    ("Erosion is absent.", "erosion"),
    ("Erosions are not seen.", "erosion"),
    ("Erosion was ruled out, smooth surface.", "erosion"),
    ("Absence of erosion.", "erosion"),
    ("Free of erosions.", "erosion"),
    ("Erosion-free mucosa.", "erosion"),
    ("Erosion: none.", "erosion"),
    ("Erosion: no", "erosion"),
    ("Non-bleeding ulcer.", "bleeding"),
    ("Surface with absent vessels.", "vessels"),
    ("Lacks erosions.", "erosion"),
    ("No evidence of erosion.", "erosion"),
]


@pytest.mark.parametrize(("text", "term"), AFFIRMED)
def test_what_is_there(text: str, term: str) -> None:
    assert NegatedText(text).mentions(term) == Mentions(1, 0)
    assert says(NegatedText(text), term) and not says(NegatedText(text), f"no {term}")


@pytest.mark.parametrize(("text", "term"), NEGATED)
def test_what_is_not_there(text: str, term: str) -> None:
    assert NegatedText(text).mentions(term) == Mentions(0, 1)
    assert says(NegatedText(text), f"no {term}") and not says(NegatedText(text), term)


def test_only_whole_words_are_found() -> None:
    assert NegatedText("Irregular vessels, microerosions").mentions("regular").total == 0
    assert NegatedText("Irregular vessels, microerosions").mentions("erosion").total == 0


def test_both_at_once_is_neither() -> None:
    text = NegatedText("Erosion. No erosion.")
    assert not says(text, "erosion") and not says(text, "no erosion")


def test_a_reference_may_speak_of_two_lesions() -> None:
    text = NegatedText("Ulcer with absent vessels; tumor with irregular vessels.")
    assert not says(text, "absent vessels")
    assert says(text, "absent vessels", text)


@pytest.mark.parametrize(
    ("keyword", "parts"),
    [
        ("no demarcation line", ("demarcation line", True)),
        ("absent vessels", ("vessels", True)),
        ("white light", ("white light", False)),
        ("not annotated", ("annotated", True)),
        ("no", ("", True)),
    ],
)
def test_a_keyword_has_a_term_and_a_sign(keyword: str, parts: tuple[str, bool]) -> None:
    assert split_negation(keyword) == parts


def test_nothing_is_mentioned_by_an_empty_term() -> None:
    assert NegatedText("No erosion.").mentions("").total == 0
    assert not says(NegatedText("no"), "no")


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="no abt,.;:-\n()<>@'ß", max_size=60), st.text(max_size=12))
def test_any_text_can_be_read(text: str, term: str) -> None:
    found = NegatedText(text).mentions(term)
    assert found.affirmed >= 0 and found.negated >= 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["smooth", "red", "villous", "of", "the", "pale"]), max_size=6))
def test_a_negation_just_before_a_word_always_holds(before: list[str]) -> None:
    text = NegatedText(" ".join([*before, "no", "erosion"]))
    assert text.mentions("erosion") == Mentions(0, 1)
    assert all(text.mentions(word).negated == 0 for word in before)
