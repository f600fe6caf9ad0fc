"""Keywords in their own section: negation, whole words, stuffing, boilerplate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import SECTIONS, Report, render
from cogalign.cognition.templates import template_report
from cogalign.data.phantom.spec import draw_spec
from cogalign.data.phantom.text import MORPHOLOGY, VESSELS, report
from cogalign.grpo.rewards import cognition_reward, section_cognition_reward
from cogalign.grpo.rewards.section import informative, section_cognition

GOLD = Report(
    location="Sigmoid colon, white light, clean lumen.",
    morphology="Sessile elevated lesion with a sharp border and a reddish tip, no ulcer.",
    microvasculature="Regular villous pits with dilated capillaries around the centre, no erosion.",
    diagnosis=("polyp",),
)
KEYWORDS = {
    "location": ["sigmoid", "colon", "white light"],
    "morphology": ["sessile", "elevated", "no ulcer"],
    "microvasculature": ["regular", "villous", "no erosion"],
}
TEXT = render(GOLD)
WORDS = sorted({word for text in [*MORPHOLOGY.values(), *VESSELS.values()] for word in text.lower().split()})


def earned(changed: Report, reference: str = TEXT) -> float:
    value = section_cognition(render(changed), KEYWORDS, reference)
    assert value is not None
    return value


def test_reference_reports_earn_all_on_their_own_keywords() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        gold = report(draw_spec(rng, 0.0, multi_share=0.4))
        assert section_cognition(render(gold), extract(gold), render(gold)) == 1
    assert section_cognition_reward([TEXT], [KEYWORDS], [TEXT]) == [1.0] == section_cognition_reward([TEXT], [KEYWORDS])


def test_it_is_not_fooled_by_a_keyword_in_another_section() -> None:
    swapped = replace(GOLD, location=GOLD.morphology, morphology=GOLD.microvasculature, microvasculature=GOLD.location)
    assert cognition_reward([render(swapped)], [KEYWORDS]) == [1.0]
    assert earned(swapped) == 0


def test_it_is_not_fooled_by_text_without_sections() -> None:
    assert section_cognition(" ".join([GOLD.location, GOLD.morphology, GOLD.microvasculature]), KEYWORDS, TEXT) == 0
    assert section_cognition("", KEYWORDS, TEXT) == 0


def test_it_is_not_fooled_by_negation() -> None:
    wrong = replace(GOLD, morphology=GOLD.morphology.replace("Sessile", "Not a sessile").replace("no ulcer", "ulcer"))
    assert earned(wrong) == pytest.approx(6 / 9)  # neither `sessile` nor `elevated` is affirmed, `no ulcer` is denied


def test_a_negation_in_other_words_counts() -> None:
    assert earned(replace(GOLD, morphology=GOLD.morphology.replace("no ulcer", "without ulcer"))) == 1


def test_it_is_not_fooled_by_a_piece_of_a_word() -> None:
    assert earned(replace(GOLD, microvasculature=GOLD.microvasculature.replace("Regular", "Irregular"))) == 8 / 9


def test_it_is_not_fooled_by_saying_both() -> None:
    both = GOLD.morphology.replace("no ulcer", "no ulcer, with an ulcer")
    assert earned(replace(GOLD, morphology=both)) == pytest.approx(8 / 9)


@pytest.mark.parametrize("reference", [TEXT, ""])
def test_it_is_not_fooled_by_stuffing_a_section_with_words(reference: str) -> None:
    half = replace(GOLD, morphology="Sessile flat lesion with a blurred border and a pale tip.")
    stuffed = replace(half, morphology=", ".join([*WORDS, "sessile", "elevated", "no ulcer"]))
    assert earned(stuffed, reference) < earned(half, reference)
    assert cognition_reward([render(stuffed)], [KEYWORDS]) > cognition_reward([render(half)], [KEYWORDS])


@settings(max_examples=30, deadline=None)
@given(st.permutations([word for word in WORDS if word != "absent"]))
def test_more_stuffing_never_earns_more(words: list[str]) -> None:
    values = [
        earned(replace(GOLD, morphology=f"{GOLD.morphology} {' '.join(words[:count])}.")) for count in (0, 12, 24, 40)
    ]
    assert values == sorted(values, reverse=True) and values[-1] < values[0]


def test_it_is_not_fooled_by_repeating_keywords() -> None:
    assert earned(replace(GOLD, morphology=GOLD.morphology + " Sessile, elevated. Sessile, elevated.")) < 0.9


def test_a_keyword_that_is_said_again_and_again_is_not_found() -> None:
    keywords = {"morphology": ["sessile"]}
    for times, wanted in ((2, 1.0), (3, 0.0)):
        text = render(Report("", f"{'Sessile of ' * times}the wall.", "", ("polyp",)))
        assert section_cognition(text, keywords) == wanted


def test_it_is_not_fooled_by_many_short_parts() -> None:
    text = render(replace(GOLD, morphology="Sessile, elevated, no ulcer, of, the, in, at, by, on, to, up, off."))
    assert section_cognition(text, KEYWORDS, TEXT) < 0.8  # type: ignore[operator]


def test_it_is_not_fooled_by_keywords_without_a_description() -> None:
    long = "Villous pits around the centre of the lesion with dilated capillaries, brown colour, and a clear line."
    reference = render(replace(GOLD, microvasculature=long))
    bare = render(replace(GOLD, microvasculature="Villous."))
    keywords = {"microvasculature": ["villous"]}
    assert section_cognition(reference, keywords, reference) == 1
    assert section_cognition(bare, keywords, reference) < 0.2  # type: ignore[operator]


def test_it_is_not_fooled_by_bare_lists() -> None:
    bare = Report(*(", ".join(KEYWORDS[section]) for section in SECTIONS), ("polyp",))
    assert cognition_reward([render(bare)], [KEYWORDS]) == [1.0]
    assert earned(bare) < 0.7


def test_it_is_not_fooled_by_template_phrases() -> None:
    gold = template_report(("polyp",), "colon")
    keywords = extract(gold)
    empty = replace(gold, location="Organ not annotated, endoscopic image, light mode not annotated.",
                    morphology="Shape and size not annotated.")  # fmt: skip
    assert cognition_reward([render(empty)], [keywords])[0] > 0.5  # type: ignore[operator]
    assert section_cognition(render(empty), keywords, render(gold)) == 0
    assert section_cognition(render(gold), keywords, render(gold)) == 1


def test_a_case_of_boilerplate_alone_is_not_judged() -> None:
    keywords = {"microvasculature": ["surface", "texture", "not annotated"]}
    reference = render(Report("", "", "Surface texture and vessels not annotated.", ("polyp",)))
    assert section_cognition_reward([TEXT, TEXT], [keywords, {}], [reference, None]) == [None, None]
    assert section_cognition_reward([TEXT, TEXT], [keywords, None]) == [None, None]
    assert informative(["surface", "cecum", "not annotated"], "") == ["cecum"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.sampled_from([TEXT, ""]))
def test_any_text_earns_between_zero_and_one(text: str, reference: str) -> None:
    for completion in (text, TEXT + text, TEXT.replace("Sessile", text)):
        value = section_cognition(completion, KEYWORDS, reference)
        assert value is not None and 0 <= value <= 1
