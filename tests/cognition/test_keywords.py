import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.keywords import count_found, extract
from cogalign.cognition.report import SECTIONS, Report, render
from cogalign.cognition.templates import normal_sections


def _only(text: str) -> list[str]:
    return extract(Report("", text, "", ()))["morphology"]


def test_a_report_gives_nine_informative_keywords() -> None:
    report = Report(
        "Stomach, white light, mild residue.",
        "Sessile elevated lesion with smooth surface.",
        "Irregular vessels, no demarcation line.",
        ("polyp",),
    )
    assert extract(report) == {
        "location": ["stomach", "white light", "mild"],
        "morphology": ["sessile", "elevated", "smooth"],
        "microvasculature": ["irregular", "vessels", "no demarcation line"],
    }


@pytest.mark.parametrize(
    ("text", "keywords"),
    [
        ("Stomach, white light.", ["stomach", "white", "white light"]),
        ("Regular vessels.", ["regular", "regular vessels", "vessels"]),
        ("Polyp, Paris Is, 8 mm.", ["polyp", "paris is", "8 mm"]),
        ("No ulcer, without erosion, not bleeding.", ["no ulcer", "without erosion", "not bleeding"]),
        ("No focal lesion.", ["no focal lesion", "focal", "lesion"]),
        ("The mucosa of the surface is red, rough, and swollen.", ["red", "rough", "swollen"]),
        ("Granular", ["granular"]),
        ("", []),
        ("It is there, and that is all.", []),
    ],
)
def test_keywords_of_a_section(text: str, keywords: list[str]) -> None:
    assert _only(text) == keywords


def test_a_word_of_an_earlier_section_gives_way_to_a_new_one() -> None:
    keywords = extract(Report("Red stomach wall", "Red sessile elevated smooth", "Red sessile elevated smooth", ()))
    assert keywords["morphology"] == ["sessile", "elevated", "smooth"]
    assert "red" in keywords["microvasculature"]
    assert len(keywords["microvasculature"]) == 3


_content = st.sampled_from(
    [
        "sessile",
        "elevated",
        "smooth",
        "lesion",
        "mucosa",
        "vessels",
        "regular",
        "villous",
        "reddish",
        "granular",
        "folds",
    ]
)
_filler = st.sampled_from(["the", "with", "no", "without", ",", ".", "and", "is", "3", "white light"])


@settings(max_examples=150, deadline=None)
@given(st.lists(_content, min_size=3, max_size=8, unique=True), st.lists(_filler, max_size=8), st.randoms())
def test_three_content_words_give_exactly_three_keywords_found_in_the_section(content, filler, random) -> None:
    tokens = content + filler
    random.shuffle(tokens)
    text = " ".join(tokens)
    keywords = _only(text)
    assert len(set(keywords)) == 3
    assert all(keyword in text for keyword in keywords)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=25), min_size=3, max_size=3))
def test_any_report_scores_full_on_its_own_keywords(sections: list[str]) -> None:
    report = Report(*sections, ())
    keywords = extract(report)
    for section in SECTIONS:
        assert len(set(keywords[section])) == len(keywords[section]) <= 3
        assert all(keyword in getattr(report, section).casefold() for keyword in keywords[section])
    assert count_found(render(report), keywords) == sum(map(len, keywords.values()))
    assert extract(report) == keywords


def test_count_is_plain_containment_without_case() -> None:
    keywords = {"location": ["colon", "white light"], "morphology": ["sessile"], "microvasculature": ["regular"]}
    assert count_found("COLON; irregular", keywords) == 2
    assert count_found("", keywords) == 0


def test_the_normal_report_gives_nine_keywords() -> None:
    report = Report("Colon, white light, clean.", *normal_sections(), ("normal",))
    keywords = extract(report)
    assert [len(keywords[section]) for section in SECTIONS] == [3, 3, 3]
    assert count_found(render(report), keywords) == 9
