"""`cogalign data annotate`: what is paid for once, what is kept, and what is not touched."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.annotation.annotate import annotate_case_set
from cogalign.data.annotation.ledger import LEDGER, Ledger, read_entries, usage_of
from cogalign.data.annotation.settings import AnnotateSettings
from cogalign.data.annotation.summary import AnnotateSummary
from cogalign.data.caseset import read_case_set
from cogalign.models.endpoint import EndpointError
from cogalign.models.endpoint_wire import Usage
from tests.data.annotation.test_annotate import by_id, change, rows, run


def by_template(root: Path, **fields: Any) -> AnnotateSummary:
    return annotate_case_set(root, AnnotateSettings(teacher="template", **fields))


def thinking(request: dict[str, Any], message: dict[str, Any] | None = None) -> Any:
    """An answer of a model that thought up to the token limit."""
    said = {"role": "assistant"} if message is None else message
    body = {"choices": [{"message": said, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 1500, "completion_tokens": request["max_tokens"]}}  # fmt: skip
    return 200, {}, json.dumps(body).encode()


@pytest.mark.parametrize(
    "message", [{"role": "assistant"}, {"role": "assistant", "content": '{"location": "Colon, cl'}]
)
def test_an_answer_cut_at_the_token_limit_is_paid_once_and_says_what_to_raise(
    cases: Path, teacher: Any, message: dict[str, Any]
) -> None:
    teacher.reply = lambda request: thinking(request, message)
    summary = run(cases, teacher, limit=2)
    assert len(teacher.requests) == 2 and dict(summary.failed) == {"cut": 2}
    assert summary.usage == Usage(prompt=3000, completion=4096, requests=2)
    assert [row["usage"]["completion"] for row in rows(cases)] == [2048, 2048]
    assert "limit of 2048 tokens" in "\n".join(summary.lines())
    assert "--max-completion-length" in "\n".join(summary.lines())
    change(cases, "case-2", split="other")
    again = run(cases, teacher, splits=("train",))  # asked before, with the same limit: nothing to pay
    assert len(teacher.requests) == 2 and again.failed["cut"] == 2
    teacher.reply = lambda request: teacher.says(teacher.report(request))
    assert run(cases, teacher, splits=("train",), max_completion_length=4096).checked == 2


def test_a_limit_that_no_answer_reaches_ends_the_run_early(write: Any, tmp_path: Path, teacher: Any) -> None:
    root = write(tmp_path / "many", 12)
    teacher.reply = thinking
    with pytest.raises(EndpointError, match=r"not one of 3 cases has a whole answer.*raise --max-completion-length"):
        run(root, teacher, concurrency=1)
    assert len(teacher.requests) <= 4 and len(rows(root)) == len(teacher.requests)


def test_one_whole_answer_shows_that_the_limit_will_do(write: Any, tmp_path: Path, teacher: Any) -> None:
    root = write(tmp_path / "many", 8)
    teacher.reply = lambda request: (
        teacher.says(teacher.report(request)) if len(teacher.requests) == 2 else thinking(request)
    )
    summary = run(root, teacher, concurrency=1)
    assert summary.checked == 1 and dict(summary.failed) == {"cut": 7}


def test_what_was_billed_without_an_answer_is_in_the_ledger(cases: Path, teacher: Any) -> None:
    body = json.dumps({"choices": [], "usage": {"prompt_tokens": 1500, "completion_tokens": 9}}).encode()
    teacher.reply = lambda request: (200, {}, body)
    summary = run(cases, teacher, limit=1)
    (row,) = rows(cases)
    assert summary.unanswered == 1 and row["answer"] is None and row["usage"]["prompt"] == 3000


def test_what_the_split_left_out_is_annotated_only_by_name(cases: Path, teacher: Any) -> None:
    change(cases, "case-1", split="left_out")
    summary = run(cases, teacher)
    assert summary.checked == 3 and len(teacher.requests) == 3
    assert "1 that the split left out (--splits left_out annotates them)" in "\n".join(summary.lines())
    assert run(cases, teacher, splits=("left_out",)).checked == 1


def test_a_template_report_that_somebody_rewrote_stays(cases: Path, teacher: Any) -> None:
    by_template(cases)
    rewritten = by_id(cases)["case-0"].answer.replace("the upper left", "the middle left")
    assert rewritten != by_id(cases)["case-0"].answer
    change(cases, "case-0", answer=rewritten)
    summary = run(cases, teacher)
    assert summary.checked == 3 and summary.left_out["with a report of their own"] == 1
    assert by_id(cases)["case-0"].answer == rewritten
    assert by_template(cases).chosen == 0 and by_id(cases)["case-0"].answer == rewritten
    assert run(cases, teacher, overwrite=True).checked == 4


def test_a_rewritten_report_stays_although_its_label_changed(cases: Path, teacher: Any) -> None:
    run(cases, teacher)
    change(cases, "case-0", answer="mine", findings=("normal",), mask_file_name=None, boxes=())
    assert run(cases, teacher).chosen == 0 and by_id(cases)["case-0"].answer == "mine"


def test_an_own_report_stays_after_an_attempt_to_overwrite_it_failed(cases: Path, teacher: Any) -> None:
    change(cases, "case-0", answer="mine")
    teacher.reply = lambda request: teacher.says("no")
    assert run(cases, teacher, overwrite=True, attempts=1, limit=1).failed_cases == 1
    teacher.reply = lambda request: teacher.says(teacher.report(request))
    assert run(cases, teacher).checked == 3 and by_id(cases)["case-0"].answer == "mine"


def test_a_report_that_is_written_while_the_teacher_is_asked_stays(cases: Path, teacher: Any) -> None:
    def reply(request: dict[str, Any]) -> Any:
        if len(teacher.requests) == 1:
            change(cases, "case-0", answer="mine")
        return teacher.says(teacher.report(request))

    teacher.reply = reply
    run(cases, teacher, concurrency=1)
    assert by_id(cases)["case-0"].answer == "mine"


def test_the_answers_are_never_written_through_a_link(cases: Path, teacher: Any, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("keep\n")
    (cases / LEDGER).symlink_to(victim)
    for estimate_only in (True, False):
        with pytest.raises(ValueError, match=r"annotations\.jsonl: found a symbolic link"):
            run(cases, teacher, estimate_only=estimate_only)
    assert victim.read_text() == "keep\n" and not teacher.requests
    (cases / LEDGER).unlink()
    (cases / LEDGER).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="symbolic link"), Ledger(cases):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_in_place_of_the_ledger_is_told(cases: Path) -> None:
    (cases / LEDGER).mkdir()
    with pytest.raises(ValueError, match="no plain file"), Ledger(cases):
        pass


def test_numbers_in_a_ledger_that_cannot_be_are_not_believed(cases: Path, teacher: Any) -> None:
    run(cases, teacher, limit=1)
    (row,) = rows(cases)
    row["usage"]["completion"] = 10**400
    (cases / LEDGER).write_text(json.dumps(row) + "\n")
    entries, _ = read_entries(cases / LEDGER)
    assert usage_of(entries[0]) == replace(Usage(prompt=1500, requests=1), completion=0)
    assert run(cases, teacher, estimate_only=True).estimate is not None


def test_a_key_that_the_teacher_repeats_is_in_no_file(cases: Path, teacher: Any) -> None:
    teacher.reply = lambda request: teacher.says(
        {**teacher.report(request), "note": "Authorization: Bearer sk-secret-1"}
    )
    assert run(cases, teacher).checked == 4
    assert [path for path in cases.rglob("*") if path.is_file() and b"sk-secret-1" in path.read_bytes()] == []
    assert read_case_set(cases).cases
