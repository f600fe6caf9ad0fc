"""What came of one case, and how it is written into the case set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cogalign.cognition.report import parse, render
from cogalign.cognition.templates import NOT_ANNOTATED
from cogalign.data.annotation.draft import Draft
from cogalign.data.annotation.remarks import Remark
from cogalign.data.case import Case
from cogalign.data.caseset import read_case_set, write_metadata
from cogalign.models.endpoint_wire import Usage

Kind = Literal["checked", "failed", "unanswered", "not_asked"]
BY_A_PERSON = ("passed", "revised")
"""Values of `attributes.annotation.status` that a reviewer gives."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    case: Case
    """As it was when it was asked about."""
    kind: Kind
    draft: Draft | None = None
    """Of a case that is `checked`."""
    key: str = ""
    """Digest of the question."""
    failures: tuple[Remark, ...] = ()
    """Of the last answer of a case that has `failed`, or why it is `unanswered`."""
    flags: tuple[Remark, ...] = ()
    attempts: int = 0
    date: str = ""
    """Of the last answer, UTC, ISO 8601."""
    usage: Usage = field(default_factory=Usage)
    """Of this run."""


def annotation_of(case: Case) -> Mapping[str, Any]:
    """`attributes.annotation` of a case; empty if there is none."""
    found = case.attributes.get("annotation")
    return found if isinstance(found, Mapping) else {}


def is_read(case: Case) -> bool:
    """Whether a person has read the report."""
    return annotation_of(case).get("status") in BY_A_PERSON


def is_current(case: Case) -> bool:
    """Whether a teacher's report passed the checks and still has the case's findings."""
    return annotation_of(case).get("status") == "checked" and parse(case.answer).agrees_with(case.findings)


def is_own(case: Case) -> bool:
    """Whether a person wrote the report: it came with the case and is no template, or is not as a teacher wrote it.

    A teacher's report is known by `attributes.annotation.written`; one without that, of an older version, counts as is.
    """
    annotation = annotation_of(case)
    written = annotation.get("written")
    if not case.answer:
        return False
    if isinstance(written, str):
        return digest_of(case.answer) != written
    return annotation.get("status") != "checked" and parse(case.answer).microvasculature != NOT_ANNOTATED


def digest_of(answer: str) -> str:
    """By which a report is known again."""
    return hashlib.sha256(answer.encode("utf-8", "replace")).hexdigest()[:32]


def applied(case: Case, outcome: Outcome, teacher: str, prompt: str) -> Case:
    """The case with what came of it.

    A case that failed keeps its answer and keywords; if these are a teacher's that passed, it stays wholly as it is.
    """
    if outcome.kind not in ("checked", "failed") or (outcome.kind == "failed" and is_current(case)):
        return case
    annotation: dict[str, Any] = {
        "teacher": teacher,
        "prompt": prompt,
        "digest": outcome.key,
        "status": outcome.kind,
        "checks": sorted({failure.check for failure in outcome.failures}),
        "flags": sorted({flag.check for flag in outcome.flags}),
        "attempts": outcome.attempts,
        "date": outcome.date,
    }
    before = annotation_of(case).get("written")
    if outcome.draft is None:
        kept = {"written": before} if before else {}
        return replace(case, attributes={**case.attributes, "annotation": annotation | kept})
    answer = render(outcome.draft.report(case.findings))
    attributes = {**case.attributes, "annotation": annotation | {"written": digest_of(answer)}}
    return replace(case, answer=answer, keywords=outcome.draft.keywords, attributes=attributes)


def write_back(root: Path, outcomes: Sequence[Outcome], teacher: str, prompt: str) -> int:
    """Write outcomes into `metadata.jsonl`, by rename; how many cases are annotated.

    The file is read again, so that what others wrote meanwhile stays; a case whose image, findings or report changed, or
    which a person has read meanwhile, is left as it is.
    """
    if not any(outcome.kind in ("checked", "failed") for outcome in outcomes):
        return 0
    by_id = {outcome.case.id: outcome for outcome in outcomes}
    rows, changed, done = [], False, 0
    for case in read_case_set(root).cases:
        outcome = by_id.get(case.id)
        same = outcome is not None and _subject(outcome.case) == _subject(case) and not is_read(case)
        new = applied(case, outcome, teacher, prompt) if outcome is not None and same else case
        changed = changed or new != case
        done += new != case and outcome is not None and outcome.kind == "checked"
        rows.append(new.to_row())
    if changed:
        write_metadata(root, rows)
    return done


def _subject(case: Case) -> tuple[object, ...]:
    """What the report of a case is about, and the report that it has."""
    return case.file_name, case.findings, case.organ, case.mask_file_name, case.boxes, case.answer
