import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.report import DIAGNOSIS_PREFIX, HEADINGS, SECTIONS, Report, parse, render
from cogalign.cognition.taxonomy import FINDINGS, lookup

POLYP = Report("Stomach, white light.", "Sessile elevated lesion with smooth surface.", "Regular vessels.", ("polyp",))

_words = st.lists(
    st.sampled_from(
        [
            "sessile",
            "lesion,",
            "3",
            "mm.",
            "No",
            "ulcer;",
            "**bold**",
            "-",
            "2.",
            "(is)",
            ":",
            "vessels\nline",
            "the result",
        ]
    ),
    min_size=1,
    max_size=12,
).map(" ".join)
_letters = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=60)
_section = st.one_of(st.just(""), _words, _letters).map(str.strip)
_unknown = st.text("abcdefghijk xyz", min_size=3, max_size=12).map(lambda t: " ".join(t.split()))
_unknown = _unknown.filter(lambda t: len(t) > 1 and t[:2] != "a " and lookup(t) is None)


@settings(max_examples=150, deadline=None)
@given(
    _section, _section, _section,
    st.lists(st.sampled_from(list(FINDINGS)), unique=True, max_size=4).map(tuple),
    st.lists(_unknown, unique=True, max_size=2).map(tuple),
)  # fmt: skip
def test_parse_undoes_render(location, morphology, microvasculature, diagnosis, unknown) -> None:
    report = Report(location, morphology, microvasculature, diagnosis, unknown)
    assert parse(render(report)) == report


_pieces = st.one_of(
    st.sampled_from([*HEADINGS.values(), DIAGNOSIS_PREFIX, "Polyp", "\n", "**", "# ", " and ", ", ", "- ", "(", "["]), st.text(max_size=8)
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(_pieces, max_size=20).map("".join)))
def test_any_text_gives_a_report_that_can_be_rendered_again(text: str) -> None:
    report = parse(text)
    assert set(report.diagnosis) <= set(FINDINGS)
    assert len(set(report.diagnosis)) == len(report.diagnosis)
    assert set(report.missing) <= {*SECTIONS, "diagnosis"}
    assert isinstance(render(report), str)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_truncated_report_keeps_its_beginning(data) -> None:
    text = render(POLYP)
    report = parse(text[: data.draw(st.integers(0, len(text)))])
    for section in SECTIONS:
        # A heading that was cut stays as a line of the section before it.
        first_line = getattr(report, section).split("\n")[0]
        assert getattr(POLYP, section).startswith(first_line)


def test_the_template_is_the_papers() -> None:
    assert render(POLYP) == (
        "1. Location & Imaging Environment\nStomach, white light.\n"
        "2. Mucosal Morphology & Focal Lesions\nSessile elevated lesion with smooth surface.\n"
        "3. Surface Texture & Microvascular Architecture\nRegular vessels.\n"
        "The diagnosis result is Polyp."
    )


@pytest.mark.parametrize(
    "text",
    [
        "**1. Location & Imaging Environment**\nA\n**2. Mucosal Morphology & Focal Lesions**\nB\n"
        "**3. Surface Texture & Microvascular Architecture**\nC\n**The diagnosis result is Polyp.**",
        "# 1. Location & Imaging Environment\n\nA\n\n## Mucosal morphology and focal lesions:\nB\n\n"
        "### 3) SURFACE TEXTURE & MICROVASCULAR ARCHITECTURE\n\nC\n\nThe diagnosis result is **Polyp**.",
        "Location and imaging environment: A 2. Mucosal Morphology & Focal Lesions: B "
        "3. Surface Texture & Microvascular Architecture: C The diagnosis result is [Polyp].",
        "3. Surface Texture & Microvascular Architecture\nC\n1. Location & Imaging Environment\nA\n"
        "2. Mucosal Morphology & Focal Lesions\nB\nThe diagnosis result is polyps. I am sure of it, no ulcer.",
        "Let me see.\r\n(1) **Location & Imaging Environment:** A\r\n(2) **Mucosal Morphology & Focal Lesions:** B\r\n"
        "(3) **Surface Texture & Microvascular Architecture:** C\r\nFinal diagnosis: Polyp",
        "Location: A\nMorphology: B\nMicrovasculature: C\nDiagnosis: a polyp",
        "The diagnosis result is Polyp.\n1. Location & Imaging Environment\nA\n2. Mucosal Morphology & Focal Lesions\nB\n"
        "3. Surface Texture & Microvascular Architecture\nC",
    ],
    ids=["bold", "markdown headings", "one line", "other order", "carriage returns", "short headings", "diagnosis first"],
)  # fmt: skip
def test_the_layout_makes_no_difference(text: str) -> None:
    assert parse(text) == Report("A", "B", "C", ("polyp",))


def test_of_a_repeated_heading_the_first_one_counts() -> None:
    again = Report("Colon.", "Flat.", "Pale.", ("ulcer",))
    assert parse(render(POLYP) + "\n" + render(again)) == POLYP


def test_a_short_heading_does_not_cut_a_section_whose_full_heading_is_there() -> None:
    report = Report(
        "Colon.", "Smooth folds.\nFocal lesions: one sessile polyp.\nSurface texture: smooth.", "Regular.", ("polyp",)
    )
    assert parse(render(report)) == report


@pytest.mark.parametrize(
    ("line", "diagnosis"),
    [
        ("Polyp, Erosion.", ("polyp", "erosion")),
        ("Erosion; Polyp", ("erosion", "polyp")),
        ("Polyp and Erosion.", ("polyp", "erosion")),
        ("polyp, erosion, and bleeding", ("polyp", "erosion", "bleeding")),
        ("Polyp with ulceration", ("polyp", "ulcer")),
        ("Polyp / SMT", ("polyp", "submucosal_tumor")),
        ("Polyp, polyps, Polyp", ("polyp",)),
        ("\n- Polyp\n- Erosion\n\nPlease see a doctor.", ("polyp", "erosion")),
        ("submucosal_tumor", ("submucosal_tumor",)),
        ("Submucosal Tumor (SMT).", ("submucosal_tumor",)),
        ("a polyp (Paris Is, sessile).", ("polyp",)),
        ("'Barrett\u2019s oesophagus'.", ("barretts",)),
        ("Normal mucosa and vascular pattern in the large bowel.", ("normal",)),
        ("Polyp. The colon shows an ulcer.", ("polyp",)),
        (": Polyp", ("polyp",)),
        ("Polyp, Erosion</answer><|im_end|>", ("polyp", "erosion")),
    ],
)
def test_diagnoses_are_read_with_any_separator(line: str, diagnosis: tuple[str, ...]) -> None:
    report = parse(DIAGNOSIS_PREFIX + line)
    assert (report.diagnosis, report.unknown) == (diagnosis, ())


@pytest.mark.parametrize(
    ("line", "diagnosis", "unknown"),
    [("Polyp, Meckel's sac.", ("polyp",), ("Meckel's sac",)), ("no polyp", (), ("no polyp",)), ("S", (), ("S",))],
)
def test_what_the_taxonomy_does_not_have_is_unknown(line: str, diagnosis, unknown) -> None:
    report = parse(DIAGNOSIS_PREFIX + line)
    assert (report.diagnosis, report.unknown) == (diagnosis, unknown)
    assert "diagnosis" not in report.missing


def test_what_is_missing_is_marked() -> None:
    assert parse("").missing == (*SECTIONS, "diagnosis")
    assert parse("I cannot help with that.").missing == (*SECTIONS, "diagnosis")
    assert parse("1. Location & Imaging Environment\nColon.\nThe diagnosis result is").missing == ("morphology", "microvasculature", "diagnosis")  # fmt: skip
    assert (
        parse("1. Location & Imaging Environment\n2. Mucosal Morphology & Focal Lesions\nFlat.").missing[0]
        == "location"
    )
    assert POLYP.missing == ()


def test_agreement_is_the_exact_set_without_an_unknown_name() -> None:
    two = Report("", "", "", ("polyp", "erosion"))
    assert two.agrees_with(["erosion", "polyp"])
    assert not two.agrees_with(["polyp"])
    assert not Report("", "", "", ("polyp",), ("something",)).agrees_with(["polyp"])
    assert not parse("").agrees_with(["normal"])


def test_an_unknown_id_cannot_be_rendered() -> None:
    with pytest.raises(ValueError, match="nearest: 'polyp'"):
        render(Report("", "", "", ("polpy",)))


@pytest.mark.parametrize(
    "piece", ["*", "#", " ", "1.", "_", "location ", "the diagnosis ", "(", "\n", "a ", "Polyp,", "- a\n", ". "]
)
def test_a_model_that_repeats_itself_costs_linear_time(piece: str) -> None:
    started = time.perf_counter()
    parse("2. Mucosal Morphology & Focal Lesions" + piece * 20_000)
    parse(DIAGNOSIS_PREFIX + "x" + piece * 20_000 + "y")
    assert time.perf_counter() - started < 5
