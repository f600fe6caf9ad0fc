import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.caseset import CaseSet
from cogalign.data.review.agreement import Agreement, agreement
from cogalign.data.review.agreement_text import agreement_text
from cogalign.data.review.commands import import_review
from cogalign.data.review.journal import JOURNAL, Entry, journal_text, read_journal
from tests.data.review.conftest import handed_in
from tests.data.review.test_report_review import exported


def entry(case: str, who: str, before: Any, after: Any, field: str = "findings", decision: Any = None) -> Entry:
    decision = decision or ("pass" if before == after else "revised")
    return Entry(case, who, field, before, after, decision, True, "", "", None, "x.json")


def findings(who: str, *after: str, before: str = "polyp") -> list[Entry]:
    """What somebody says of cases 0, 1, ... that the teacher called `before`."""
    return [entry(str(number), who, [before], [found]) for number, found in enumerate(after)]


def row(found: Agreement, who: str, field: str) -> Any:
    return next(row for row in found.teacher if (row.annotator, row.field) == (who, field))


def test_shares_of_decisions_by_annotator_and_field() -> None:
    entries = findings("a", "polyp", "polyp", "ulcer", "polyp") + findings("b", "polyp", "ulcer")
    entries[3] = replace(entries[3], decision="reject")
    found = agreement(entries)
    own = row(found, "a", "findings")
    assert (own.n, {word: figure.value for word, figure in own.shares.items()}) == (
        4, {"pass": 0.5, "revised": 0.25, "reject": 0.25})  # fmt: skip
    assert row(found, "all", "findings").n == 6 and found.cases == 4 and found.annotators == ["a", "b"]
    assert 0.09 < own.shares["pass"].low < 0.16 and 0.84 < own.shares["pass"].high < 0.91


def test_one_annotator_alone_has_no_row_for_all_and_no_pair() -> None:
    found = agreement(findings("a", "polyp", "ulcer"))
    assert {r.annotator for r in found.teacher} == {"a"} and found.pairs == [] and found.mean_kappa is None


def test_kappa_of_a_pair_is_about_the_cases_that_both_kept() -> None:
    a = findings("a", "polyp", "polyp", "ulcer", "ulcer", "tumor", "polyp")
    b = findings("b", "polyp", "ulcer", "ulcer", "ulcer", "polyp")
    b[4] = replace(b[4], decision="reject")
    (pair,) = agreement(a + b).pairs
    assert pair.cases == 5 and pair.verdict.value == 0.8
    assert pair.findings.n == pair.kappa.n == 4 and pair.findings.value == 0.75
    assert pair.kappa.value == pytest.approx(0.5)  # 3 of 4 agree, 1 of 2 by chance


def test_findings_are_sets_and_the_order_makes_no_difference() -> None:
    a = [entry("1", "a", ["polyp"], ["polyp", "ulcer"]), entry("2", "a", ["polyp"], ["tumor"])]
    b = [entry("1", "b", ["polyp"], ["ulcer", "polyp"]), entry("2", "b", ["polyp"], ["tumor"])]
    (pair,) = agreement(a + b).pairs
    assert pair.kappa.value == 1


def test_edit_distance_is_of_texts_that_were_not_rejected() -> None:
    entries = [
        entry("1", "a", "abcd", "abcx", "location"),
        entry("2", "a", "abcd", "abcd", "location"),
        entry("3", "a", "abcd", "", "location", "reject"),
    ]
    change = row(agreement(entries), "a", "location").change
    assert (change.value, change.n) == (pytest.approx(0.125), 2)


def test_the_last_review_of_a_person_counts() -> None:
    found = agreement(findings("a", "ulcer") + findings("a", "polyp"))
    assert row(found, "a", "findings").shares["pass"].value == 1 and row(found, "a", "findings").n == 1


def test_over_two_rounds_the_teacher_is_what_the_first_one_showed() -> None:
    first = [entry("1", "a", "Sessile.", "Flat, IIa.", "morphology"), entry("1", "a", ["polyp"], ["ulcer"])]
    second = [entry("1", "a", "Flat, IIa.", "Flat, IIa.", "morphology"), entry("1", "a", ["ulcer"], ["ulcer"])]
    found = agreement(first + second)
    text = row(found, "a", "morphology")
    assert (text.n, text.shares["revised"].value, text.shares["pass"].value) == (1, 1, 0)
    assert text.change == row(agreement(first), "a", "morphology").change and text.change.value > 0
    assert row(found, "a", "findings").shares["revised"].value == 1
    assert found.teacher_kappa["a"].value == 0  # polyp against ulcer


def test_who_comes_back_to_the_teachers_words_passes_them() -> None:
    rounds = [entry("1", "a", "Sessile.", "Flat.", "morphology"), entry("1", "b", "Flat.", "Sessile. ", "morphology")]
    found = agreement(rounds)
    assert row(found, "b", "morphology").shares["pass"].value == 1
    assert row(found, "a", "morphology").shares["revised"].value == 1
    assert row(agreement([*rounds, entry("1", "b", "Sessile.", "", "morphology", "reject")]), "b", "morphology").shares[
        "reject"].value == 1  # fmt: skip


def test_three_annotators_have_three_pairs_and_one_alpha() -> None:
    said = ("polyp", "ulcer", "tumor", "polyp")
    found = agreement([e for who in "abc" for e in findings(who, *said)])
    assert len(found.pairs) == 3 and found.mean_kappa == 1 and found.alpha.value == 1 and found.alpha.n == 4


def test_what_cannot_be_computed_is_a_dash_in_the_text() -> None:
    text = agreement_text(agreement(findings("a|x", "polyp", "polyp") + findings("b", "polyp")), ["case 1: odd"])
    assert "| a\\|x, b | 1 | 100 % (21 to 100) |" in text and " | - | " in text
    assert text.rstrip().endswith("- case 1: odd")


def test_the_figures_are_written_beside_the_cases(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    path = reported.root.parent / "e.json"
    path.write_text(json.dumps([{**task, "annotations": [handed_in(task, 4, "pass"), handed_in(task, 5, "pass")]}]))
    new = reported.root.parent / "new"
    import_review([path], reported.root, new)
    figures = json.loads((new / "agreement.json").read_text())
    assert figures["cases"] == 1 and figures["annotators"] == ["4", "5"]
    assert figures["teacher"][0]["shares"]["pass"] == {
        "value": 1.0,
        "low": pytest.approx(0.342, abs=1e-3),
        "high": 1.0,
        "n": 2,
    }
    assert (new / "agreement.md").read_text().startswith("# Agreement\n\n1 reports, reviewed by 4, 5.")


def test_a_journal_reads_back(tmp_path: Path) -> None:
    entries = [*findings("a", "polyp", "ulcer"), entry("1", "ü", "old", "new\nline", "location")]
    (tmp_path / JOURNAL).write_text(journal_text(entries), encoding="utf-8")
    assert read_journal(tmp_path) == entries and read_journal(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field": "colour"}, "line 2: field: found 'colour', wanted one of location"),
        ({"decision": "maybe"}, "decision: found 'maybe', wanted one of pass, revised, reject"),
        ({"before": 3}, "before: found 3, wanted a text or a list"),
        ({"before": "polyp"}, "before: found 'polyp', wanted a list of findings"),
        ({"annotator": None}, "annotator: found None, wanted a text"),
        ({"more": 1}, "line 2: found .*more.*, wanted an object with after"),
    ],
)
def test_a_damaged_journal_names_the_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = journal_text(findings("a", "polyp"))
    (tmp_path / JOURNAL).write_text(good + json.dumps({**json.loads(good), **change}) + "\n")
    with pytest.raises(ValueError, match=message):
        read_journal(tmp_path)


def test_a_line_that_is_no_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("{\n")
    with pytest.raises(ValueError, match=r"review\.jsonl line 1"):
        read_journal(tmp_path)
