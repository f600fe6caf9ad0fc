"""The fields of a report that reviewers correct, and the controls of the labelling interface that hold them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, get_args

from cogalign.cognition.report import SECTIONS, Report, parse
from cogalign.cognition.taxonomy import FINDINGS, name_of
from cogalign.data.case import Case

FINDINGS_FIELD = "findings"
KEYWORDS_PREFIX = "keywords."
KEYWORD_FIELDS: tuple[str, ...] = tuple(KEYWORDS_PREFIX + section for section in SECTIONS)
FIELDS: tuple[str, ...] = (*SECTIONS, FINDINGS_FIELD, *KEYWORD_FIELDS)
"""What a reviewer may correct, in the order of the form; the names in `review.jsonl`."""

Decision = Literal["pass", "revised", "reject"]
"""What a reviewer did with a field: left it, changed it, or rejected the whole report."""
DECISIONS: tuple[Decision, ...] = get_args(Decision)

CONTROLS: dict[str, str] = {name: "report_" + name.replace(".", "_") for name in FIELDS}
"""Names of the controls by field."""
FIELD_OF: dict[str, str] = {control: name for name, control in CONTROLS.items()}
DIGEST = "cogalign_report"
"""Key of a task's data that holds `Form.digest` of the exported report."""
REPORT_VERDICT, REPORT_NOTE = "report_verdict", "report_note"
REPORT_CONTROLS = frozenset((*FIELD_OF, REPORT_VERDICT, REPORT_NOTE))

Value = tuple[str, ...]
"""Content of a field: one text for a section, ids for the findings, one text a keyword."""


@dataclass(frozen=True)
class Form:
    """The content of all fields of a case."""

    values: dict[str, Value]

    @property
    def digest(self) -> str:
        """A short text that differs where the content differs: whether a report is still the one that was exported."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def empty(self) -> bool:
        """Whether the case has no report to review."""
        return not any(self.values[section] for section in SECTIONS)


def form_of(case: Case) -> Form:
    """The fields of a case as they stand: sections of its answer, its findings, its keywords."""
    report = report_of(case)
    values: dict[str, Value] = {}
    for section in SECTIONS:
        text = getattr(report, section)
        values[section] = (text,) if text else ()
        values[KEYWORDS_PREFIX + section] = tuple(case.keywords.get(section, ()))
    values[FINDINGS_FIELD] = tuple(case.findings)
    return Form(values)


def report_of(case: Case) -> Report:
    """The report in a case's answer."""
    return parse(case.answer)


def finding_names(value: Value) -> list[str]:
    """Display names of findings; an id that the taxonomy does not have stays as it is."""
    return [name_of(finding) if finding in FINDINGS else finding for finding in value]


def plain(name: str, value: Value) -> str | list[str]:
    """A field's content as `review.jsonl` holds it: a text for a section, else a list."""
    return "".join(value) if name in SECTIONS else list(value)


def as_value(content: str | list[str]) -> Value:
    """A field's content from how `review.jsonl` holds it, the reverse of `plain`."""
    if isinstance(content, str):
        return (content,) if content else ()
    return tuple(content)
