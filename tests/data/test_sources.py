import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.data.interchange.exporting import licence_warnings
from cogalign.data.sources import (
    ANSWERS,
    Licence,
    Source,
    allows,
    datasets_of,
    read_sources,
    sources_of,
    strictest,
    write_sources,
)


def source(title: str = "Kvasir-SEG", redistribution: str = "ask", commercial: str = "no", cases: int = 3) -> Source:
    return Source(
        "kvasir-seg", title, Licence("research", redistribution, commercial), "Jha 2020", "https://x.org", cases
    )


def test_sources_come_back_as_they_were_written(tmp_path):
    sources = [source(), Source("b", "Été", Licence("CC BY 4.0", "yes", "yes", "cite it"), "", "", 0)]
    write_sources(tmp_path, sources)
    assert read_sources(tmp_path) == sources


def test_a_folder_without_the_file_has_no_sources(tmp_path):
    assert read_sources(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("title"), "sources.json: sources\\[0\\].source: field 'title' is missing"),
        (lambda entry: entry.update(more=1), "field 'more' is unknown"),
        (lambda entry: entry.update(cases="3"), "cases: found '3', wanted int"),
        (lambda entry: entry.update(cases=-1), "cases: found -1"),
        (
            lambda entry: entry["licence"].update(commercial="maybe"),
            "licence.commercial: found 'maybe', wanted one of yes",
        ),
        (lambda entry: entry["licence"].pop("name"), "licence: field 'name' is missing"),
        (lambda entry: entry.update(licence="CC BY"), "licence: found 'CC BY', wanted dict"),
    ],
)
def test_a_bad_field_is_named(tmp_path, change, message):
    write_sources(tmp_path, [source()])
    content = json.loads((tmp_path / "sources.json").read_text())
    change(content["sources"][0])
    (tmp_path / "sources.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_sources(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"sources": {}}', "\x00"])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "sources.json").write_text(text)
    with pytest.raises(ValueError, match=r"sources\.json"):
        read_sources(tmp_path)


def test_each_data_set_of_the_cases_gets_a_source_and_what_is_not_given_is_unknown():
    cases = [Case(f"c{n}", f"{n}.png", ("polyp",), "train", dataset=name, licence="own terms")
             for n, name in enumerate(["Kvasir-SEG", "Kvasir-SEG", "Ours"])]  # fmt: skip
    found = sources_of([source(cases=99), source("Absent")], cases)
    assert [(one.title, one.cases) for one in found] == [("Kvasir-SEG", 2), ("Ours", 1)]
    assert found[1].licence == Licence("own terms", "unknown", "unknown")


def test_of_two_sources_of_one_data_set_the_stricter_answers_count():
    cases = [Case("c", "c.png", ("polyp",), "train", dataset="Kvasir-SEG")]
    licence = sources_of([source(redistribution="yes"), source(redistribution="unknown", commercial="yes")], cases)[
        0
    ].licence
    assert (licence.redistribution, licence.commercial) == ("unknown", "no")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(ANSWERS), min_size=1))
def test_all_together_are_allowed_only_if_each_is(answers):
    assert (strictest(answers) == "yes") == (set(answers) == {"yes"})
    assert (strictest(answers) == "no") == ("no" in answers)


def test_a_transplant_onto_another_data_set_is_of_both_and_the_stricter_licence_counts():
    one = Case("a", "a.png", ("polyp",), "train", dataset="A")
    both = Case("b", "b.png", ("polyp",), "train", dataset="A", attributes={"background_dataset": "B"})
    assert datasets_of(one) == ("A",) and datasets_of(both) == ("A", "B")
    for lenders, wanted in (("C", ("A", "B", "C")), (["C", "D"], ("A", "B", "C", "D")), (["B", "A"], ("A", "B"))):
        drawn = replace(both, attributes={**both.attributes, "overlays_dataset": lenders})
        assert datasets_of(drawn) == wanted
    known = {"A": source("A", "yes", "yes"), "B": source("B", "ask", "no")}
    assert [allows(one, known, use) for use in ("redistribution", "commercial")] == ["yes", "yes"]
    assert [allows(both, known, use) for use in ("redistribution", "commercial")] == ["ask", "no"]
    assert allows(both, {"A": known["A"]}, "commercial") == "unknown"
    assert [(found.title, found.cases) for found in sources_of(list(known.values()), [one, both])] == [
        ("A", 2),
        ("B", 1),
    ]


def test_an_export_that_requires_a_use_sees_the_background_of_a_transplant():
    both = Case("b", "b.png", ("polyp",), "train", dataset="A", attributes={"background_dataset": "B"})
    known = [source("A", "yes", "yes"), source("B", "ask", "no")]
    assert licence_warnings([Case("a", "a.png", ("polyp",), "train", dataset="A")], known, "commercial") == []
    with pytest.raises(ValueError, match="require commercial: not known to be allowed for B "):
        licence_warnings([both], known, "commercial")
    with pytest.raises(ValueError, match="require commercial: not known to be allowed for B "):
        licence_warnings([both], known[:1], "commercial")
