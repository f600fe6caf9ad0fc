import xml.etree.ElementTree as ElementTree
from pathlib import Path

from cogalign.data.case import Case
from cogalign.data.leaks import LeakReport
from cogalign.data.split_summary import picture, summarise


def case(number: int, finding: str, split: str, group: str = "", dataset: str = "own") -> Case:
    return Case(f"c{number}", f"images/c{number}.png", (finding,), split, group=group, dataset=dataset)


def summary_of(cases, settings=None):
    report = LeakReport(Path("set"), {}, [])
    return summarise(
        Path("set"), "stratified", settings or {"seed": 3, "test_share": 0.2}, cases, ["a note"], report, {}
    )


CASES = [case(n, "polyp", "test" if n < 2 else "train") for n in range(10)]
CASES += [case(n, "ulcer", "train", group="v1") for n in range(10, 15)]
CASES += [case(n, "erosion", "test" if n < 18 else "validation", group="v2" if n < 18 else "v3") for n in range(15, 20)]
CASES += [case(20, "normal", "left_out", dataset="<odd> & set")]


def test_the_lines_tell_shares_of_used_cases_and_findings_that_are_off():
    lines = "\n".join(summary_of(CASES).lines())
    assert "21 cases in 14 groups" in lines and "a note" in lines
    assert "train 13 (65.0%), validation 2 (10.0%), test 5 (25.0%), left_out 1" in lines
    assert "not in test: normal (1 groups), ulcer (1 groups)" in lines
    assert "share of test far from 20%, since groups stay whole: erosion 60% (2 groups)" in lines
    assert "polyp 20%" not in lines


def test_counts_are_by_finding_and_source_in_the_order_of_the_splits():
    summary = summary_of(CASES)
    assert summary.findings["polyp"] == {"train": 8, "test": 2}
    assert list(summary.splits) == ["train", "validation", "test", "left_out"]
    assert summary.sources["own"] == {"train": 13, "validation": 2, "test": 5} and not summary.failed


def test_the_picture_is_an_svg_whose_bars_fill_their_row_whatever_the_names():
    root = ElementTree.fromstring(picture(summary_of(CASES)))
    spaces = {"s": "http://www.w3.org/2000/svg"}
    bars = [bar for bar in root.findall("s:rect", spaces) if bar.find("s:title", spaces) is not None]
    widths: dict[str, float] = {}
    for bar in bars:
        widths[bar.get("y", "")] = widths.get(bar.get("y", ""), 0) + float(bar.get("width", 0))
    assert len(widths) == 1 + 4 + 2 and all(abs(width - 480) < 0.5 for width in widths.values())
    assert "<odd> & set" in [text.text for text in root.findall("s:text", spaces)]
