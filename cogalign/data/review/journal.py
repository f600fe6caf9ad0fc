"""Who changed what in which report: `review.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cogalign.data.review.fields import DECISIONS, FIELDS, FINDINGS_FIELD, Decision, plain
from cogalign.data.review.report_import import same
from cogalign.data.review.resolve import Outcome

JOURNAL = "review.jsonl"


@dataclass(frozen=True)
class Entry:
    """One field of one report in the hands of one annotator.

    Args:
        case: id of the case.
        annotator: e-mail address or number; empty if it is not known.
        field: one of `FIELDS`.
        before: content as it was shown: a text for a section, else a list of texts.
        after: content as it came back.
        decision: pass, revised, or reject (the whole report).
        taken: whether the new case set has this content.
        remark: on the report.
        time: last change of the annotation, ISO 8601; empty if it is not known.
        lead_time: seconds that the annotation took; None if it is not known.
        file: name of the export.
    """

    case: str
    annotator: str
    field: str
    before: str | list[str]
    after: str | list[str]
    decision: Decision
    taken: bool
    remark: str
    time: str
    lead_time: float | None
    file: str


def entries_of(outcomes: Iterable[Outcome]) -> list[Entry]:
    """The entries of reviews: one for each case, annotator and field that has content before or after."""
    entries = []
    for outcome in outcomes:
        for review in outcome.reviews:
            for name in FIELDS:
                before, after = review.before[name], review.after[name]
                if not before and not after:
                    continue
                agreed = not outcome.rejected and not review.rejected and same(name, outcome.values[name], after)
                entries.append(
                    Entry(
                        case=review.case.id,
                        annotator=review.annotation.by,
                        field=name,
                        before=plain(name, before),
                        after=plain(name, after),
                        decision=review.decision(name),
                        taken=agreed or (outcome.rejected and review.rejected),
                        remark=review.remark,
                        time=review.annotation.time,
                        lead_time=review.annotation.lead_time,
                        file=review.file,
                    )
                )
    return entries


def journal_text(entries: Iterable[Entry]) -> str:
    """The lines of a journal."""
    return "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)


def read_journal(root: Path) -> list[Entry]:
    """The entries of a case set's journal, the oldest review first; an empty list if it has none.

    Raises:
        ValueError: a line is damaged; the message names it.
    """
    path = root / JOURNAL
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(_entry(json.loads(line.decode("utf-8"))))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: {error}") from None
    return entries


def _entry(row: Any) -> Entry:
    """An entry from a parsed line."""
    names = {field.name for field in fields(Entry)}
    if not isinstance(row, dict) or set(row) != names:
        found = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"found {found}, wanted an object with {', '.join(sorted(names))}")
    for name, words in (("field", FIELDS), ("decision", DECISIONS)):
        if row[name] not in words:
            raise ValueError(f"{name}: found {row[name]!r}, wanted one of {', '.join(words)}")
    for name in ("case", "annotator", "remark", "time", "file"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name}: found {row[name]!r}, wanted a text")
    for name in ("before", "after"):
        value = row[name]
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(t, str) for t in value)):
            raise ValueError(f"{name}: found {value!r}, wanted a text or a list of texts")
        if row["field"] == FINDINGS_FIELD and isinstance(value, str):
            raise ValueError(f"{name}: found {value!r}, wanted a list of findings")
    return Entry(**row)
