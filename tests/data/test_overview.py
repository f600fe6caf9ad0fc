import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.overview import cooccurrence, counts_by_source, licences_markdown, summary_markdown, write_overview
from cogalign.data.overview_plots import class_histogram, cooccurrence_plot
from cogalign.data.sources import Licence, Source


def case(number: int, *findings: str, dataset: str = "A", split: str = "train", **given) -> Case:
    return Case(f"c{number}", f"{number}.png", findings, split, dataset=dataset, **given)


CASES = [
    case(0, "polyp"),
    case(1, "polyp", "ulcer", split="test"),
    case(2, "ulcer", "polyp", "erosion", dataset="B", mask_file_name="m.png"),
    case(3, "normal", dataset="B", organ="colon"),
]


def test_findings_are_counted_by_data_set_and_together():
    assert counts_by_source(CASES) == {
        "A": Counter(polyp=2, ulcer=1), "B": Counter(polyp=1, ulcer=1, erosion=1, normal=1)}  # fmt: skip
    counts = cooccurrence(CASES)
    assert counts["polyp", "ulcer"] == counts["ulcer", "polyp"] == 2
    assert counts["erosion", "polyp"] == 1 and counts["polyp", "polyp"] == 1 and counts["normal", "normal"] == 1
    assert ("normal", "polyp") not in counts and ("ulcer", "ulcer") not in counts


def test_the_summary_counts_by_split_and_tells_the_shortcut():
    page = summary_markdown(CASES, [])
    assert "| finding | cases | train | test |" in page and "| polyp | 3 | 2 | 1 |" in page
    assert "Masks: 1." in page and "Several findings: 2." in page and "(the largest has 1 cases)" in page
    alike = [case(n, name, dataset=name[0]) for n, name in enumerate(["polyp", "ulcer"] * 5)]
    assert "Cramer's V 1.00" in summary_markdown(alike, []) and "shortcut" in summary_markdown(alike, [])
    crossing = [case(0, "polyp", group="g"), case(1, "polyp", group="g", split="test")]
    assert "Groups in more than one split: 1." in summary_markdown(crossing, [])
    assert "Cramer" not in summary_markdown(crossing, [])


def test_licences_say_which_cases_may_be_used_and_how():
    sources = [
        Source("a", "A", Licence("CC BY | 4.0", "yes", "yes"), "Someone 2020", "https://a.org", 3),
        Source("b", "B", Licence("research", "yes", "no", "Ask the owner."), "", "", 2),
    ]
    both = case(9, "polyp", attributes={"background_dataset": "B"})
    page = licences_markdown(sources, [*CASES, both])
    assert "| [A](https://a.org) | 3 | yes | yes | CC BY \\| 4.0 |" in page
    assert "5 of 5 cases may be passed on: A, B. All together: **yes**." in page
    assert "2 of 5 cases may be used commercially: A. All together: **no**." in page
    assert "Cite: Someone 2020" in page and "Ask the owner." in page


def texts(picture: bytes) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(picture).iter() if node.tag.endswith("}text")]


@pytest.mark.parametrize("number", [1, 27])
def test_pictures_name_all_findings_and_counts_and_are_the_same_each_time(number):
    names = [str(name) for name in list(FINDINGS)[:number]]
    cases = [case(n, name, dataset=f"Set {n % 3}") for n, name in enumerate(names)] + [
        case(99, names[0], dataset="Set 0")
    ]
    by_source = counts_by_source(cases)
    bars = class_histogram(by_source)
    assert bars == class_histogram(by_source)
    assert {name.replace("_", " ") for name in names} <= set(texts(bars))
    assert {"Set 0", " 2"} & set(texts(bars)) and "2" in {text.strip() for text in texts(bars)}
    heat = cooccurrence_plot(cooccurrence(cases), by_source)
    assert heat == cooccurrence_plot(cooccurrence(cases), by_source)
    assert texts(heat).count(names[-1].replace("_", " ")) >= 2


def test_names_that_matplotlib_would_read_as_formulas_are_drawn_as_they_are():
    assert "$a$ & <b>" in texts(class_histogram({"$a$ & <b>": Counter(polyp=1)}))


def test_an_overview_is_written_for_any_case_set(tmp_path):
    write_overview(CaseSet(tmp_path, CASES), tmp_path / "seen")
    assert "0 of 4 images were looked at" in (tmp_path / "seen/overlays.md").read_text()
    assert "| A | 2 | unknown | unknown | unknown |" in (tmp_path / "seen/licences.md").read_text()
    assert b"<svg" in (tmp_path / "seen/classes.svg").read_bytes()


def test_a_set_without_findings_has_pictures_that_say_so():
    questions: dict[str, Counter[str]] = {"EndoBench": Counter(), "Kvasir-VQA-x1": Counter()}
    nothing: dict[str, Counter[str]] = {}
    for by_source in (questions, nothing):
        for picture in (class_histogram(by_source), cooccurrence_plot({}, by_source)):
            text = "".join(ElementTree.fromstring(picture).itertext())
            assert "No case has a finding" in text and all(name in text for name in by_source)


def test_the_overview_of_a_set_of_questions_is_written(tmp_path):
    cases = [case(n, dataset="EndoBench", question="What is it?", answer="A") for n in range(3)]
    write_overview(CaseSet(tmp_path, cases), tmp_path / "overview")
    assert "3 cases of 1 data sets" in (tmp_path / "overview" / "summary.md").read_text()
    assert b"No case has a finding" in (tmp_path / "overview" / "classes.svg").read_bytes()


def test_a_folder_that_is_a_link_out_of_the_set_is_not_written_through(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set/overview").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match="overview: a symbolic link leads out of the case set"):
        write_overview(CaseSet(tmp_path / "set", CASES), tmp_path / "set/overview")
    assert list((tmp_path / "elsewhere").iterdir()) == []
