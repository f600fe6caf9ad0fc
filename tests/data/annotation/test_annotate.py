"""`cogalign data annotate` as a whole, against a teacher behind a real local HTTP server."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogalign.cognition.report import parse
from cogalign.data.annotation.annotate import annotate_case_set
from cogalign.data.annotation.ledger import LEDGER, Ledger
from cogalign.data.annotation.settings import AnnotateSettings
from cogalign.data.annotation.summary import AnnotateSummary
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, read_case_set, write_metadata
from cogalign.data.check import check_case_set
from cogalign.models.endpoint import EndpointError, EndpointSettings


def run(root: Path, teacher: Any, *, estimate_only: bool = False, **fields: Any) -> AnnotateSummary:
    kinds = EndpointSettings.__dataclass_fields__
    there = {name: fields.pop(name) for name in list(fields) if name in kinds}
    asked = EndpointSettings(**{"url": teacher.url, "model": "seer", "api_key_env": "TEST_KEY", "retries": 1, **there})
    return annotate_case_set(root, AnnotateSettings(endpoint=asked, **fields), estimate_only=estimate_only)


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / LEDGER).read_text().splitlines()]


def by_id(root: Path) -> dict[str, Case]:
    return read_case_set(root).by_id


def change(root: Path, case_id: str, **fields: Any) -> None:
    changed = [replace(case, **fields) if case.id == case_id else case for case in read_case_set(root).cases]
    write_metadata(root, [case.to_row() for case in changed])


def test_every_case_gets_a_report_with_its_own_diagnosis(cases: Path, teacher: Any) -> None:
    before = by_id(cases)
    summary = run(cases, teacher, price_in=2.0, price_out=10.0)
    assert (summary.checked, summary.failed_cases, len(teacher.requests)) == (4, 0, 4)
    for case in read_case_set(cases).cases:
        assert parse(case.answer).agrees_with(case.findings) and case.answer != before[case.id].answer
        assert [len(words) for words in case.keywords.values()] == [3, 3, 3]
        annotation = case.attributes["annotation"]
        assert (annotation["status"], annotation["teacher"], annotation["attempts"]) == ("checked", "seer", 1)
        assert annotation["digest"] and annotation["prompt"] and annotation["date"].endswith("+00:00")
        assert replace(case, answer="", keywords={}, attributes={}) == replace(
            before[case.id], answer="", keywords={}, attributes={}
        )
    assert check_case_set(cases) == []
    assert summary.cost == pytest.approx((4 * 1500 * 2 + 4 * 200 * 10) / 1e6)
    text = "\n".join(summary.lines())
    assert "4 of 4 cases annotated by seer" in text and "6,000 tokens of questions, 800 of answers; cost 0.02" in text


def test_the_teacher_is_told_the_gold_and_the_place_and_gets_the_image(cases: Path, teacher: Any) -> None:
    run(cases, teacher, image_side=64, concurrency=1)
    lesion = next(request for request in teacher.requests if "Findings, in this order" in teacher.told(request))
    told = teacher.told(lesion)
    assert "Organ: Colon" in told and "1. Polyp" in told and "upper left of the image" in told and "about 6 %" in told
    assert lesion["messages"][0]["role"] == "system" and "Stage 3" in lesion["messages"][0]["content"]
    assert lesion["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert lesion["response_format"]["type"] == "json_schema"
    normal = next(request for request in teacher.requests if "Findings: none" in teacher.told(request))
    assert "view: cecum" in teacher.told(normal)


def test_a_refused_answer_is_corrected_in_the_next_turn(cases: Path, teacher: Any) -> None:
    def reply(request: dict[str, Any]) -> Any:
        report = teacher.report(request)
        return teacher.says(
            report if teacher.turns(request) else {**report, "location": "Stomach, clear view of the antrum."}
        )

    teacher.reply = reply
    summary = run(cases, teacher)
    assert (summary.checked, summary.retried, len(teacher.requests)) == (4, 4, 8)
    last = next(request for request in teacher.requests if teacher.turns(request))
    assert "names the stomach first, but this is the colon" in last["messages"][-1]["content"]
    assert [row["failed"] for row in rows(cases)].count(["organ"]) == 4
    assert by_id(cases)["case-0"].attributes["annotation"]["attempts"] == 2


def test_a_case_that_fails_every_time_keeps_its_answer_and_is_not_paid_for_again(cases: Path, teacher: Any) -> None:
    teacher.reply = lambda request: teacher.says(
        {**teacher.report(request), "morphology": "A deep ulcer with a white base."}
    )
    before = by_id(cases)
    summary = run(cases, teacher, attempts=2, limit=1)
    assert (summary.failed_cases, summary.checked, dict(summary.failed)) == (1, 0, {"finding_added": 1})
    case = by_id(cases)["case-0"]
    assert case.answer == before["case-0"].answer
    assert case.attributes["annotation"]["status"] == "failed"
    assert case.attributes["annotation"]["checks"] == ["finding_added"] and len(teacher.requests) == 2
    assert all(row["usage"]["prompt"] == 1500 for row in rows(cases))
    teacher.reply = lambda request: teacher.says(teacher.report(request))
    again = run(cases, teacher, attempts=2)
    assert (again.checked, again.failed_cases, len(teacher.requests)) == (3, 1, 5)
    more = run(cases, teacher, attempts=3)
    assert (more.checked, more.left_out["annotated already"], len(teacher.requests)) == (1, 3, 6)
    assert teacher.turns(teacher.requests[-1]) == 2  # the answers of before are in the conversation


def test_nothing_is_asked_twice_and_the_ledger_restores_what_metadata_lost(cases: Path, teacher: Any) -> None:
    before = (cases / METADATA).read_bytes()
    run(cases, teacher)
    after = (cases / METADATA).read_bytes()
    assert run(cases, teacher).chosen == 0 and (cases / METADATA).read_bytes() == after
    (cases / METADATA).write_bytes(before)
    summary = run(cases, teacher)
    assert (summary.checked, summary.reused, len(teacher.requests)) == (4, 4, 4)
    assert (cases / METADATA).read_bytes() == after and summary.usage.requests == 0


@pytest.mark.parametrize("what", ["findings", "image", "model", "temperature"])
def test_another_question_is_asked_anew(cases: Path, teacher: Any, what: str) -> None:
    before = (cases / METADATA).read_bytes()
    run(cases, teacher, limit=1)
    (cases / METADATA).write_bytes(before)
    fields: dict[str, Any] = {}
    if what == "findings":
        change(cases, "case-0", findings=("normal",), mask_file_name=None, boxes=())
    elif what == "image":
        (cases / "images/0.png").write_bytes((cases / "images/1.png").read_bytes())
    else:
        fields = {what: "other" if what == "model" else 0.7}
    run(cases, teacher, limit=1, **fields)
    assert len(teacher.requests) == 2


def test_a_changed_label_makes_an_annotated_case_due_again(cases: Path, teacher: Any) -> None:
    run(cases, teacher)
    change(cases, "case-0", findings=("normal",), mask_file_name=None, boxes=())
    assert run(cases, teacher).checked == 1
    assert parse(by_id(cases)["case-0"].answer).diagnosis == ("normal",)


@pytest.mark.parametrize("tail", [b'{"key": "abc", "answ', b"\x00\xff\n", b'"text"\n', b'{"key": 3}\n'])
def test_a_damaged_ledger_line_is_ignored_and_told(cases: Path, teacher: Any, tail: bytes) -> None:
    run(cases, teacher, limit=2)
    with (cases / LEDGER).open("ab") as stream:
        stream.write(tail)
    summary = run(cases, teacher)
    assert (summary.damaged, summary.checked, len(teacher.requests)) == (1, 2, 4)
    with Ledger(cases) as ledger:
        assert ledger.damaged == 1
    assert "1 damaged lines are ignored" in "\n".join(summary.lines())


def test_what_a_person_has_read_is_never_overwritten(cases: Path, teacher: Any) -> None:
    for case_id, status in (("case-0", "revised"), ("case-1", "passed")):
        change(cases, case_id, attributes={"annotation": {"status": status}}, answer="mine")
    summary = run(cases, teacher, overwrite=True)
    assert (summary.checked, summary.left_out["read by a person"]) == (2, 2)
    assert by_id(cases)["case-0"].answer == by_id(cases)["case-1"].answer == "mine"


def test_reports_that_came_with_a_case_stay_unless_overwritten(cases: Path, teacher: Any) -> None:
    own = by_id(cases)["case-0"].answer.replace("Surface texture and vessels not annotated.", "Villous pits.")
    change(cases, "case-0", answer=own)
    assert run(cases, teacher).left_out["with a report of their own"] == 1
    assert by_id(cases)["case-0"].answer == own
    assert run(cases, teacher, overwrite=True).checked == 4 and len(teacher.requests) == 4


def test_counterfactuals_other_splits_and_unknown_findings_are_left_out(cases: Path, teacher: Any) -> None:
    change(cases, "case-0", counterfactual_of="case-1")
    change(cases, "case-1", findings=("dragon",))
    summary = run(cases, teacher, splits=("train",))
    assert summary.checked == 1 and set(summary.left_out) == {
        "counterfactuals", "with findings that the taxonomy does not have", "of other splits"
    }  # fmt: skip
    with pytest.raises(ValueError, match="no split 'tset'"):
        run(cases, teacher, splits=("tset",))


def test_keywords_that_fail_do_not_cost_another_answer(cases: Path, teacher: Any) -> None:
    teacher.reply = lambda request: teacher.says({**teacher.report(request), "keywords": {"location": ["the"]}})
    summary = run(cases, teacher)
    assert (summary.checked, len(teacher.requests), summary.flags["keywords_extracted"]) == (4, 4, 4)
    assert by_id(cases)["case-0"].attributes["annotation"]["flags"] == ["keywords_extracted"]


def test_an_estimate_asks_nothing_and_counts_what_is_paid_for(cases: Path, teacher: Any) -> None:
    before = (cases / METADATA).read_bytes()
    told = run(cases, teacher, estimate_only=True, price_in=1.0, price_out=1.0)
    assert not teacher.requests and not (cases / LEDGER).exists()
    assert told.estimate is not None and (told.estimate.cases, told.estimate.paid) == (4, 0)
    assert told.estimate.image_tokens == 4 * 3 * 2 and "cost: about" in "\n".join(told.lines())
    run(cases, teacher, limit=1)
    (cases / METADATA).write_bytes(before)
    told = run(cases, teacher, estimate_only=True)
    assert told.estimate is not None and (told.estimate.cases, told.estimate.paid) == (3, 1)
    assert told.estimate.answer_tokens == 600 and "give the prices" in "\n".join(told.lines())
    assert (cases / METADATA).read_bytes() == before


def test_the_cost_never_passes_its_limit(write: Callable[..., Path], tmp_path: Path, teacher: Any) -> None:
    root = write(tmp_path / "many", 12)
    fields: dict[str, Any] = {"price_in": 100.0, "price_out": 1000.0, "max_completion_length": 300, "concurrency": 3}
    summary = run(root, teacher, max_cost=2.0, **fields)
    assert summary.cost is not None and 1.0 < summary.cost <= 2.0
    assert summary.not_asked == 12 - summary.checked > 0 and "raise --max-cost" in summary.stopped
    assert len(teacher.requests) == summary.checked
    assert run(root, teacher, max_cost=0.0, **fields).checked == 0
    assert run(root, teacher, **fields).checked == 12 - summary.checked and len(teacher.requests) == 12


def test_a_server_that_goes_down_in_the_middle_ends_the_run_and_keeps_the_answers(
    write: Callable[..., Path], tmp_path: Path, teacher: Any
) -> None:
    root = write(tmp_path / "many", 12)
    teacher.reply = lambda request: (
        teacher.says(teacher.report(request)) if len(teacher.requests) <= 5 else teacher.fails(500, "out of memory")
    )
    with pytest.raises(EndpointError, match="3 cases in a row without an answer: HTTP 500: out of memory"):
        run(root, teacher, concurrency=1)
    assert sum("annotation" in case.attributes for case in read_case_set(root).cases) == 5
    teacher.reply = lambda request: None if len(teacher.requests) % 2 else teacher.says(teacher.report(request))
    asked = len(teacher.requests)
    summary = run(root, teacher, concurrency=1)
    assert summary.checked == 7 and summary.usage.lost == len(teacher.requests) - asked - 7 > 0
    assert "the provider may bill them too" in "\n".join(summary.lines())


def test_a_wrong_key_ends_it_before_anything_is_changed(cases: Path, teacher: Any) -> None:
    before = (cases / METADATA).read_bytes()
    teacher.reply = lambda request: teacher.fails(401, "bad key sk-secret-1")
    with pytest.raises(EndpointError, match="TEST_KEY, which is set") as caught:
        run(cases, teacher, concurrency=1)
    assert len(teacher.requests) == 1 and "sk-secret-1" not in str(caught.value)
    assert (cases / METADATA).read_bytes() == before and not (cases / LEDGER).exists()


def test_the_key_is_in_no_file(cases: Path, teacher: Any) -> None:
    run(cases, teacher)
    assert teacher.requests
    for path in cases.rglob("*"):
        assert not path.is_file() or b"sk-secret-1" not in path.read_bytes()


def test_a_case_that_the_server_refuses_does_not_stop_the_others(cases: Path, teacher: Any) -> None:
    teacher.reply = lambda request: (
        teacher.fails(413, "image too large")
        if "Findings: none" in teacher.told(request)
        else teacher.says(teacher.report(request))
    )
    summary = run(cases, teacher)
    assert (summary.checked, summary.failed_cases) == (2, 2) and dict(summary.failed) == {"refused": 2}


def test_nonsense_costs_its_attempts_and_then_fails(cases: Path, teacher: Any) -> None:
    replies = iter([{"a": 1}, "no idea", "", [], "{", "<html>", {}, None])
    teacher.reply = lambda request: teacher.says(next(replies, "again"))
    summary = run(cases, teacher, attempts=2, concurrency=1)
    assert (summary.failed_cases, dict(summary.failed), len(teacher.requests)) == (4, {"json": 4}, 8)


def test_a_broken_image_or_mask_fails_alone(cases: Path, teacher: Any) -> None:
    (cases / "images/0.png").write_bytes(b"")
    (cases / "masks/2.png").unlink()
    summary = run(cases, teacher)
    assert (summary.checked, dict(summary.failed)) == (2, {"image": 2})
    assert len(teacher.requests) == 2 and by_id(cases)["case-0"].attributes["annotation"]["checks"] == ["image"]


def test_two_runs_at_once_do_not_pay_twice(cases: Path, teacher: Any) -> None:
    with Ledger(cases), pytest.raises(BlockingIOError, match="another process annotates this case set"):
        run(cases, teacher)
    assert not teacher.requests


def test_what_others_write_meanwhile_stays(cases: Path, teacher: Any) -> None:
    def reply(request: dict[str, Any]) -> Any:
        if len(teacher.requests) == 1:
            change(cases, "case-0", attributes={"annotation": {"status": "revised"}}, answer="mine")
            change(cases, "case-1", group="patient-9")
        return teacher.says(teacher.report(request))

    teacher.reply = reply
    run(cases, teacher, concurrency=1)
    found = by_id(cases)
    assert found["case-0"].answer == "mine" and found["case-1"].group == "patient-9"
    assert found["case-1"].attributes["annotation"]["status"] == "checked"


SCRIPT = """
import sys
from pathlib import Path
from cogalign.data.annotation.annotate import annotate_case_set
from cogalign.data.annotation.settings import AnnotateSettings
from cogalign.models.endpoint import EndpointSettings
from cogalign.training.interrupt import Interrupted
asked = EndpointSettings(sys.argv[2], "seer", "TEST_KEY", concurrency=2, retries=1)
try:
    annotate_case_set(Path(sys.argv[1]), AnnotateSettings(endpoint=asked))
except Interrupted:
    sys.exit(7)
"""


@pytest.mark.parametrize(("signals", "kept", "written"), [
    ((signal.SIGKILL,), 3, 0),  # only what had come is kept, and nothing was written yet
    ((signal.SIGTERM,), 5, 5),  # what was under way comes in too
    ((signal.SIGTERM, signal.SIGINT), 3, 0),  # what was under way is dropped
])  # fmt: skip
def test_what_was_paid_for_is_kept_when_the_process_is_stopped(
    write: Callable[..., Path],
    tmp_path: Path,
    teacher: Any,
    signals: tuple[signal.Signals, ...],
    kept: int,
    written: int,
) -> None:
    root = write(tmp_path / "many", 8)
    blocked, go_on = threading.Event(), threading.Event()

    def reply(request: dict[str, Any]) -> Any:
        if len(teacher.requests) > 3:
            if len(teacher.requests) > 4:
                blocked.set()
            go_on.wait(20)
        return teacher.says(teacher.report(request))

    teacher.reply = reply
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(root), teacher.url]
    process = subprocess.Popen(command, env={**os.environ, "TEST_KEY": "sk-secret-1"}, stderr=subprocess.PIPE)
    assert blocked.wait(60) and process.stderr is not None
    while len(rows(root)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    for number in signals:
        process.send_signal(number)
        while number == signal.SIGTERM and b"under way" not in process.stderr.readline():
            if process.poll() is not None:
                break
    if len(signals) == 2:
        assert process.wait(10) == 7  # it does not wait for the answers
    go_on.set()
    process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if signal.SIGKILL in signals else 7)
    assert sum(row["answer"] is not None for row in rows(root)) == kept
    assert sum("annotation" in case.attributes for case in read_case_set(root).cases) == written
    asked = len(teacher.requests)
    summary = run(root, teacher)
    assert summary.checked == 8 - written and len(teacher.requests) == asked + 8 - kept


def test_the_template_needs_no_endpoint_and_tells_only_what_is_known(cases: Path) -> None:
    summary = annotate_case_set(cases, AnnotateSettings(teacher="template"))
    assert summary.checked == 4 and not (cases / LEDGER).exists()
    case = by_id(cases)["case-0"]
    assert "upper left of the image" in case.answer and "Surface texture and vessels not annotated." in case.answer
    words = [word for section in case.keywords.values() for word in section]
    assert words and not any("annotated" in word or "endoscopic" in word for word in words)
    assert case.attributes["annotation"]["teacher"] == "template" and check_case_set(cases) == []
    assert annotate_case_set(cases, AnnotateSettings(teacher="template")).chosen == 0


def test_the_estimate_of_the_template_is_that_it_costs_nothing(cases: Path) -> None:
    before = (cases / METADATA).read_bytes()
    told = annotate_case_set(cases, AnnotateSettings(teacher="template"), estimate_only=True).lines()
    assert told == [f"{cases}: 4 cases to annotate by template, which costs nothing"]
    assert (cases / METADATA).read_bytes() == before


def test_a_models_report_replaces_a_template_but_not_the_other_way_round(cases: Path, teacher: Any) -> None:
    annotate_case_set(cases, AnnotateSettings(teacher="template"))
    assert run(cases, teacher).checked == 4
    assert annotate_case_set(cases, AnnotateSettings(teacher="template")).left_out["annotated already"] == 4


@pytest.mark.parametrize(("fields", "match"), [
    ({"teacher": "oracle"}, "annotate.teacher: found 'oracle', wanted one of template, endpoint"),
    ({"teacher": "endpoint"}, "annotate.endpoint: found None"),
    ({"teacher": "template", "attempts": 0}, "annotate.attempts: found 0"),
    ({"teacher": "template", "max_cost": 1.0}, "annotate.max_cost: found 1.0, wanted prices"),
    ({"teacher": "template", "price_in": 1.0}, "both or none"),
    ({"teacher": "template", "price_in": -1.0, "price_out": 1.0}, "annotate.price_in: found -1.0"),
    ({"teacher": "template", "image_side": 8}, "annotate.image_side: found 8"),
])  # fmt: skip
def test_settings_that_cannot_be_are_errors_that_name_the_field(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AnnotateSettings(**fields)


def test_a_folder_without_cases_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        annotate_case_set(tmp_path, AnnotateSettings(teacher="template"))
