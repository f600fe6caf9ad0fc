"""Reports to Label Studio and back: what reviewers see, what comes back, who changed what."""

import json
import logging
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from cogalign.cognition.report import SECTIONS, parse
from cogalign.cognition.taxonomy import FINDINGS, name_of
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.review.commands import export_review, import_review
from cogalign.data.review.journal import read_journal
from cogalign.data.review.label_studio import labelling_config
from cogalign.data.sources import Licence, Source, read_sources, write_sources
from tests.data.review.conftest import REPORTS, handed_in

FIRST, SECOND, THIRD = ({"id": n, "email": f"{name}@hospital.org"} for n, name in enumerate(("anna", "ben", "cem"), 1))
NEW_TEXT = ["Flat raised lesion, Paris IIa."]
NEW_WORDS = ["flat", "raised lesion", "Paris IIa"]


def exported(cases: CaseSet) -> dict[str, dict[str, Any]]:
    folder = cases.root.parent / "project"
    export_review(cases.root, folder, "label-studio", reports=True)
    tasks = json.loads((folder / "tasks.json").read_text())
    return {task["data"]["cogalign_id"]: {"id": number, **task} for number, task in enumerate(tasks, start=1)}


def imported(cases: CaseSet, annotations: dict[str, list[dict[str, Any]]], resolve: str = "refuse") -> dict[str, int]:
    """Import an export that holds these annotations, as `new` beside the case set."""
    content = [{**task, "annotations": annotations.get(name, [])} for name, task in exported(cases).items()]
    path = cases.root.parent / "export.json"
    path.write_text(json.dumps(content))
    return import_review([path], cases.root, cases.root.parent / "new", resolve=resolve)


def new_set(cases: CaseSet) -> CaseSet:
    return read_case_set(cases.root.parent / "new")


def revised(task: dict[str, Any], by: Any = FIRST, **fields: Any) -> dict[str, Any]:
    return handed_in(task, by, "revised", morphology=NEW_TEXT, keywords_morphology=NEW_WORDS, **fields)


def test_the_form_shows_the_report_filled_in(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    shown = {
        r["from_name"]: r["value"] for r in task["predictions"][0]["result"] if r["from_name"].startswith("report_")
    }
    for section, text in zip(SECTIONS, REPORTS["one"][1:], strict=True):
        assert shown[f"report_{section}"] == {"text": [text]}
        assert shown[f"report_keywords_{section}"] == {"text": reported.by_id["one"].keywords[section]}
    assert shown["report_findings"] == {"choices": ["Polyp"]}


def test_the_form_has_a_control_for_each_field_and_every_finding(reported: CaseSet) -> None:
    config = ElementTree.fromstring(labelling_config(reported.cases, reports=True))
    controls = {element.get("name"): element for element in config.iter() if element.get("toName") == "image"}
    used = {r["from_name"] for task in exported(reported).values() for r in task["predictions"][0]["result"]}
    assert used <= controls.keys() and {"verdict", "report_verdict", "report_note"} <= controls.keys()
    findings = [choice.get("value") for choice in controls["report_findings"]]
    assert set(findings) == {name_of(finding) for finding in FINDINGS} and set(findings[:3]) == {
        "Polyp",
        "Erosion",
        "Normal",
    }
    assert [choice.get("value") for choice in controls["report_verdict"]] == ["pass", "revised", "reject"]


def test_without_reports_the_interface_stays_as_it_was(reported: CaseSet, tmp_path: Path) -> None:
    export_review(reported.root, tmp_path / "plain", "label-studio")
    assert "report" not in (tmp_path / "plain/labelling.xml").read_text() + (tmp_path / "plain/tasks.json").read_text()


def test_reports_are_for_label_studio_and_for_sets_that_have_some(
    reported: CaseSet, cases: CaseSet, pairs: CaseSet, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--reports: found with --format coco, wanted --format label-studio"):
        export_review(reported.root, tmp_path / "x.json", "coco", reports=True)
    with pytest.raises(ValueError, match="no case has a report"):
        export_review(cases.root, tmp_path / "x", "label-studio", reports=True)
    with pytest.raises(ValueError, match="all cases are counterfactuals"):
        export_review(pairs.root, tmp_path / "x", "label-studio", reports=True)
    assert not (tmp_path / "x").exists()


def test_a_passed_report_is_the_same_and_says_who_passed_it(reported: CaseSet) -> None:
    tasks = exported(reported)
    counts = imported(reported, {name: [handed_in(task, FIRST, "pass")] for name, task in tasks.items()})
    assert counts["reports passed"] == 4 and counts["kept"] == 4 and counts["reports revised"] == 0
    for case in new_set(reported).cases:
        old = reported.by_id[case.id]
        assert (case.answer, case.keywords, case.findings) == (old.answer, old.keywords, old.findings)
        assert case.attributes["annotation"] == {"status": "passed", "reviewers": ["anna@hospital.org"]}


def test_a_correction_is_rendered_anew_and_told_field_by_field(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    counts = imported(reported, {"one": [revised(task, note=["shape was wrong"])]})
    assert (counts["reports revised"], counts["reports passed"]) == (1, 0)
    case = new_set(reported).by_id["one"]
    report = parse(case.answer)
    assert report.morphology == NEW_TEXT[0] and report.location == REPORTS["one"][1] and report.diagnosis == ("polyp",)
    assert (
        case.keywords["morphology"] == NEW_WORDS
        and case.keywords["location"] == reported.by_id["one"].keywords["location"]
    )
    assert case.attributes["annotation"]["status"] == "revised" and case.attributes["cue"] == "one"
    entries = {entry.field: entry for entry in read_journal(reported.root.parent / "new")}
    assert len(entries) == 7 and {e.annotator for e in entries.values()} == {"anna@hospital.org"}
    assert (entries["morphology"].before, entries["morphology"].after) == (REPORTS["one"][2], NEW_TEXT[0])
    assert [name for name, e in entries.items() if e.decision == "revised"] == ["morphology", "keywords.morphology"]
    change = entries["morphology"]
    assert (change.time, change.lead_time, change.remark) == (
        "2026-03-01T11:00:00.500000+00:00",
        12.5,
        "shape was wrong",
    )
    assert change.taken and change.file.endswith("export.json")


def test_keywords_may_be_one_text_with_a_line_each(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    imported(reported, {"one": [revised(task)]})
    (reported.root.parent / "new").rename(reported.root.parent / "list")
    lines = handed_in(
        task, FIRST, None, morphology=NEW_TEXT, keywords_morphology=["flat\nraised lesion\n\n Paris IIa "]
    )
    imported(reported, {"one": [lines]})
    assert new_set(reported).by_id["one"].keywords == read_case_set(reported.root.parent / "list").by_id["one"].keywords


def test_another_finding_changes_case_diagnosis_boxes_and_label_of_the_mask(
    reported: CaseSet, caplog: pytest.LogCaptureFixture
) -> None:
    task = exported(reported)["one"]
    with caplog.at_level(logging.WARNING):
        imported(reported, {"one": [handed_in(task, FIRST, "revised", findings=["Ulcer"])]})
    case = new_set(reported).by_id["one"]
    assert case.findings == ("ulcer",) and parse(case.answer).diagnosis == ("ulcer",)
    assert [box.finding for box in case.boxes] == ["ulcer"] and case.mask_file_name
    assert "case 'one': findings polyp became ulcer" in caplog.text
    assert "findings polyp became ulcer" in (reported.root.parent / "new/agreement.md").read_text()


def test_a_case_found_normal_loses_mask_and_boxes_and_says_so(
    reported: CaseSet, caplog: pytest.LogCaptureFixture
) -> None:
    task = exported(reported)["one"]
    annotation = handed_in(task, FIRST, "revised", findings=["Normal"])
    with pytest.raises(ValueError, match=r"case 'one'.*a region of 'polyp', but the report says normal"):
        imported(reported, {"one": [annotation]})
    annotation["result"] = [result for result in annotation["result"] if result["type"] in ("choices", "textarea")]
    imported(reported, {"one": [annotation]})
    case = new_set(reported).by_id["one"]
    assert case.is_normal and case.mask_file_name is None and not case.boxes
    assert "mask and boxes are dropped" in caplog.text


def test_a_rejected_report_takes_its_case_out(reported: CaseSet) -> None:
    task = exported(reported)["two"]
    counts = imported(reported, {"two": [handed_in(task, FIRST, "reject", location=None, note=["another patient"])]})
    assert (counts["kept"], counts["rejected"], counts["reports rejected"]) == (3, 1, 1)
    (row,) = map(json.loads, (reported.root.parent / "new/rejected.jsonl").read_text().splitlines())
    attributes = json.loads(row["attributes"])
    assert row["id"] == "two" and attributes["annotation"]["status"] == "rejected"
    assert attributes["review"] == {"verdict": "reject", "by": "anna@hospital.org",
                                    "note": "report rejected in review; another patient"}  # fmt: skip
    assert {entry.decision for entry in read_journal(reported.root.parent / "new")} == {"reject"}


def test_a_mask_and_a_report_are_corrected_in_one_annotation(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    annotation = revised(task)
    square = {"points": [[25, 25], [50, 25], [50, 75], [25, 75]], "closed": True, "polygonlabels": ["polyp"]}
    brush = next(result for result in annotation["result"] if result["type"] == "brushlabels")
    brush.update(type="polygonlabels", from_name="polygon", value=square)
    counts = imported(reported, {"one": [annotation]})
    new = new_set(reported)
    wanted = np.zeros((40, 56), dtype=bool)
    wanted[10:30, 14:28] = True
    assert counts["refined"] == counts["reports revised"] == 1
    assert np.array_equal(new.mask(new.by_id["one"]), wanted)
    assert parse(new.by_id["one"].answer).morphology == NEW_TEXT[0]
    assert new.by_id["one"].attributes["mask"]["by"] == "anna@hospital.org"


def test_skipped_annotations_drafts_and_masks_alone_say_nothing_of_a_report(reported: CaseSet) -> None:
    tasks = exported(reported)
    drawn = handed_in(tasks["two"], FIRST)
    drawn["result"] = [result for result in drawn["result"] if result["type"] == "brushlabels"]
    skipped = handed_in(tasks["one"], FIRST, "reject", was_cancelled=True)
    content = [
        {**tasks["one"], "annotations": [skipped], "drafts": [handed_in(tasks["one"], SECOND, "reject")]},
        {**tasks["two"], "annotations": [drawn], "total_annotations": 1},
    ]
    path = reported.root.parent / "export.json"
    path.write_text(json.dumps(content))
    counts = import_review([path], reported.root, reported.root.parent / "new")
    assert counts == {"kept": 4, "refined": 1, "rejected": 0, "restored": 0, "elsewhere": 0}
    assert not (reported.root.parent / "new/review.jsonl").exists()


def test_those_who_agree_are_taken_together(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    counts = imported(reported, {"one": [revised(task, FIRST), revised(task, SECOND, day=2)]})
    assert counts["reports disputed"] == 0
    case = new_set(reported).by_id["one"]
    assert case.attributes["annotation"]["reviewers"] == ["anna@hospital.org", "ben@hospital.org"]


def test_those_who_differ_are_listed_with_what_they_say(reported: CaseSet) -> None:
    tasks = exported(reported)
    annotations = {
        "one": [handed_in(tasks["one"], FIRST, "pass"), revised(tasks["one"], SECOND)],
        "two": [handed_in(tasks["two"], FIRST, "pass"), handed_in(tasks["two"], SECOND, "reject")],
    }
    with pytest.raises(ValueError, match=r"^3 differences between annotators; .*--resolve") as raised:
        imported(reported, annotations)
    assert "case 'one', morphology: anna@hospital.org: 'Sessile raised" in str(raised.value)
    assert "case 'two', report: anna@hospital.org: keep; ben@hospital.org: reject" in str(raised.value)
    assert not (reported.root.parent / "new").exists()


@pytest.mark.parametrize(("rule", "text"), [("latest", REPORTS["one"][2]), ("first", NEW_TEXT[0])])
def test_a_rule_settles_differences(reported: CaseSet, rule: str, text: str) -> None:
    task = exported(reported)["one"]
    counts = imported(reported, {"one": [handed_in(task, SECOND, "pass", day=5), revised(task, FIRST, day=2)]}, rule)
    assert counts["reports disputed"] == 1
    assert parse(new_set(reported).by_id["one"].answer).morphology == text
    taken = {e.annotator: e.taken for e in read_journal(reported.root.parent / "new") if e.field == "morphology"}
    assert taken == {"anna@hospital.org": rule == "first", "ben@hospital.org": rule == "latest"}


def test_the_majority_decides_field_by_field_and_a_tie_is_left(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    two = [revised(task, FIRST, day=1), handed_in(task, SECOND, "pass", day=2)]
    with pytest.raises(ValueError, match="ties are left"):
        imported(reported, {"one": two}, "majority")
    imported(reported, {"one": [*two, revised(task, THIRD, day=3, findings=["Ulcer"])]}, "majority")
    case = new_set(reported).by_id["one"]
    assert parse(case.answer).morphology == NEW_TEXT[0] and case.findings == ("polyp",)


def test_more_than_half_must_reject_for_the_majority_to_do_so(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    voices = [handed_in(task, FIRST, "reject"), handed_in(task, SECOND, "pass"), handed_in(task, THIRD, "pass")]
    assert imported(reported, {"one": voices}, "majority")["rejected"] == 0
    (reported.root.parent / "new").rename(reported.root.parent / "kept")
    voices[1] = handed_in(task, SECOND, "reject")
    assert imported(reported, {"one": voices}, "majority")["rejected"] == 1


def test_a_ground_truth_counts_alone(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    voices = [revised(task, FIRST, ground_truth=True), handed_in(task, SECOND, "pass", day=7)]
    assert imported(reported, {"one": voices})["reports disputed"] == 0
    assert parse(new_set(reported).by_id["one"].answer).morphology == NEW_TEXT[0]


def test_the_newest_of_one_persons_annotations_counts(reported: CaseSet, caplog: pytest.LogCaptureFixture) -> None:
    task = exported(reported)["one"]
    imported(reported, {"one": [handed_in(task, FIRST, "pass", day=9), revised(task, FIRST, day=3)]})
    assert new_set(reported).by_id["one"].attributes["annotation"]["status"] == "passed"
    assert "anna@hospital.org reviewed it more than once" in caplog.text


def test_a_second_round_goes_on_where_the_first_ended(reported: CaseSet) -> None:
    imported(reported, {"one": [revised(exported(reported)["one"])]})
    second = new_set(reported)
    second.root.rename(second.root.parent / "round-1")
    second = read_case_set(second.root.parent / "round-1")
    imported(second, {"one": [handed_in(exported(second)["one"], SECOND, "pass", day=4)]})
    third = new_set(second)
    entries = read_journal(third.root)
    assert len(entries) == 14 and [e.annotator for e in entries[::7]] == ["anna@hospital.org", "ben@hospital.org"]
    assert third.by_id["one"].attributes["annotation"]["reviewers"] == ["anna@hospital.org", "ben@hospital.org"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"morphology": NEW_TEXT}, "case 'one', keywords.morphology: 'sessile' does not occur in the section's text; nearest"),
        ({"keywords_location": ["colon", "white lite", "clear view"]}, "'white lite' does not occur.*nearest: 'white light'"),
        ({"keywords_location": ["colon", "Colon", "view"]}, "keywords.location: found 'colon' twice"),
        ({"keywords_location": ["colon", "view"]}, "keywords.location: found 2 keywords, wanted 3"),
        ({"location": ["Colon.\nThe diagnosis result is Ulcer."], "keywords_location": ["colon", "diagnosis", "ulcer"]},
         "case 'one', location: found a heading or a diagnosis"),
        ({"location": None}, "task 1 .case 'one'.: location: found nothing, wanted the text"),
        ({"location": ["  "], "findings": None}, "location, findings: found nothing"),
        ({"findings": ["Polyp", "Normal"]}, "case 'one', findings: found polyp, normal, wanted normal alone"),
        ({"findings": ["Polypus maximus"]}, "found 'Polypus maximus', which the taxonomy does not have; nearest: 'polyp'"),
        ({"verdict": "perhaps"}, "report_verdict: found perhaps, wanted one of pass, revised, reject"),
        ({"location": 3}, "report_location: found textarea with .*wanted texts or choices"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together_names_case_and_field(
    reported: CaseSet, fields: dict[str, Any], message: str
) -> None:
    task = exported(reported)["one"]
    with pytest.raises(ValueError, match=message):
        imported(reported, {"one": [handed_in(task, FIRST, **fields)]})
    assert not (reported.root.parent / "new").exists()


def test_all_problems_are_listed_at_once(reported: CaseSet) -> None:
    tasks = exported(reported)
    wrong = {name: [handed_in(tasks[name], FIRST, morphology=["Something else."])] for name in ("one", "two")}
    with pytest.raises(ValueError, match=r"(?s)case 'one', keywords\.morphology.*case 'two', keywords\.morphology"):
        imported(reported, wrong)


def test_a_verdict_that_does_not_fit_is_told(reported: CaseSet, caplog: pytest.LogCaptureFixture) -> None:
    tasks = exported(reported)
    changed = {**revised(tasks["one"])}
    changed["result"] = [r for r in changed["result"] if r["from_name"] != "report_verdict"]
    changed["result"].append({"type": "choices", "from_name": "report_verdict", "value": {"choices": ["pass"]}})
    imported(reported, {"one": [changed], "two": [handed_in(tasks["two"], FIRST, "revised")]})
    assert re.search("says pass, but morphology, keywords.morphology changed; taken as revised", caplog.text)
    assert "says revised, but nothing changed; taken as pass" in caplog.text


def test_controls_of_others_are_told(reported: CaseSet, caplog: pytest.LogCaptureFixture) -> None:
    task = exported(reported)["one"]
    annotation = handed_in(task, FIRST, "pass")
    annotation["result"].append(
        {"type": "textarea", "from_name": "ward", "to_name": "image", "value": {"text": ["7 b"]}}
    )
    imported(reported, {"one": [annotation]})
    assert "control 'ward' is not one of cogalign's; read as remark: {'text': ['7 b']}" in caplog.text


def test_a_result_of_an_unknown_type_is_refused_by_name(reported: CaseSet) -> None:
    annotation = handed_in(exported(reported)["one"], FIRST, "pass")
    annotation["result"].append({"type": "rating", "from_name": "stars", "value": {"rating": 4}})
    with pytest.raises(ValueError, match=r"case 'one'.*type: found 'rating'"):
        imported(reported, {"one": [annotation]})


def test_an_unknown_rule_is_refused(reported: CaseSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resolve: found 'dice', wanted one of refuse, latest, first, majority"):
        import_review([tmp_path / "x.json"], reported.root, tmp_path / "new", resolve="dice")


def test_an_export_of_another_state_of_the_reports_is_refused(reported: CaseSet) -> None:
    tasks = exported(reported)
    imported(reported, {"one": [revised(tasks["one"])]})
    content = [{**tasks["one"], "annotations": [handed_in(tasks["one"], FIRST, "pass")]}]
    (reported.root.parent / "old.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"case 'one'.*not the one that was exported"):
        import_review([reported.root.parent / "old.json"], new_set(reported).root, reported.root.parent / "newer")


def test_licences_and_quarantine_go_along(reported: CaseSet) -> None:
    licence = Licence("CC BY 4.0", "yes", "yes")
    write_sources(reported.root, [Source("own", "", licence, "we", "https://example.org", 4)])
    (reported.root / "quarantine.jsonl").write_text('{"dataset": "own", "path": "x.png", "reason": "empty"}\n')
    imported(reported, {"two": [handed_in(exported(reported)["two"], FIRST, "reject")]})
    (source,) = read_sources(new_set(reported).root)
    assert (source.cases, source.licence) == (3, licence)
    assert (new_set(reported).root / "quarantine.jsonl").read_text().startswith('{"dataset": "own"')
