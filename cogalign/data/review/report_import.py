"""What annotators made of the reports: the fields of each annotation, and a decision on each field."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cogalign.cognition.report import SECTIONS
from cogalign.cognition.taxonomy import FINDINGS, lookup, nearest
from cogalign.data.case import Case
from cogalign.data.review.annotations import Annotation
from cogalign.data.review.fields import (
    CONTROLS,
    DECISIONS,
    FIELDS,
    FINDINGS_FIELD,
    REPORT_CONTROLS,
    REPORT_NOTE,
    REPORT_VERDICT,
    Decision,
    Value,
    form_of,
)
from cogalign.data.review.label_studio import NOTE, VERDICT


@dataclass(frozen=True)
class ReportReview:
    """What one annotator made of the report of one case.

    Args:
        annotation: where it comes from.
        verdict: the choice on the whole report; None if none was made.
        remark: the remark on the report.
        before: the fields as the reviewed case set has them.
        after: the fields as they came back; those of a rejected report count for nothing.
        file: name of the export.
    """

    annotation: Annotation
    verdict: Decision | None
    remark: str
    before: Mapping[str, Value]
    after: Mapping[str, Value]
    file: str

    @property
    def case(self) -> Case:
        """The case as it was reviewed."""
        return self.annotation.case

    @property
    def rejected(self) -> bool:
        """Whether the whole report is rejected."""
        return self.verdict == "reject"

    def decision(self, name: str) -> Decision:
        """What was done with a field."""
        if self.rejected:
            return "reject"
        return "pass" if same(name, self.before[name], self.after[name]) else "revised"


def same(name: str, one: Value, other: Value) -> bool:
    """Whether two contents of a field say the same: findings are a set, spaces at the ends do not count."""
    if name == FINDINGS_FIELD:
        return set(one) == set(other)
    return tuple(map(str.strip, one)) == tuple(map(str.strip, other))


def report_reviews(files: Iterable[tuple[str, Iterable[Annotation]]]) -> tuple[list[ReportReview], list[str]]:
    """The reviews of reports in the annotations of exports, and what is to be told about them.

    An annotation without anything of the report says nothing of it (someone drew a mask alone). Of several annotations
    of a case by the same person the newest counts.

    Args:
        files: name of each export and its annotations, see `read_annotations`.

    Raises:
        ValueError: the reports are not those of the case set; a text or all findings were deleted, a finding is not in
            the taxonomy, a verdict is another word, or a control holds something else; the message lists all places.
    """
    newest: dict[tuple[str, str], ReportReview] = {}
    told: list[str] = []
    problems: list[str] = []
    for file, annotation in ((name, annotation) for name, some in files for annotation in some):
        told += _unknown(annotation)
        try:
            review = _review(annotation, file)
        except ValueError as error:
            problems.append(f"{annotation.place}: {error}")
            continue
        if review is None:
            continue
        key = (annotation.case.id, annotation.by)
        other = newest.get(key)
        if other is not None:
            told.append(
                f"{annotation.place}: {annotation.by or 'somebody'} reviewed it more than once, the newest counts"
            )
        if other is None or annotation.when >= other.annotation.when:
            newest[key] = review
    if problems:
        raise ValueError("\n".join(problems))
    reviews = list(newest.values())
    return reviews, [*told, *(line for review in reviews for line in _odd(review))]


def _unknown(annotation: Annotation) -> list[str]:
    """Texts and choices of controls that this package did not write."""
    known = {None, VERDICT, NOTE, *REPORT_CONTROLS}
    return [
        f"{annotation.place}: control {result['from_name']!r} is not one of cogalign's; "
        f"read as {role}: {result.get('value')}"
        for result in annotation.results
        for role in ({"choices": "verdict", "textarea": "remark"}.get(result["type"]),)
        if role and result.get("from_name") not in known
    ]


def _odd(review: ReportReview) -> list[str]:
    """Verdicts that do not fit what was done; what was done counts."""
    changed = [name for name in FIELDS if review.decision(name) == "revised"]
    if review.verdict == "pass" and changed:
        return [f"{review.annotation.place}: the verdict says pass, but {', '.join(changed)} changed; taken as revised"]
    if review.verdict == "revised" and not changed:
        return [f"{review.annotation.place}: the verdict says revised, but nothing changed; taken as pass"]
    return []


def _review(annotation: Annotation, file: str) -> ReportReview | None:
    """The review of an annotation; None if it holds nothing of the report.

    Raises:
        ValueError: see `report_reviews`, without the place.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for result in annotation.results:
        control = result.get("from_name")
        if control in REPORT_CONTROLS:
            texts[control] += _content(control, result)
    if not texts:
        return None
    if annotation.case.counterfactual_of is not None:
        raise ValueError("found a report, but the case is a counterfactual, whose report is made from its source's")
    verdict = _verdict(texts.get(REPORT_VERDICT, []))
    form = form_of(annotation.case)
    if annotation.report not in ("", form.digest):
        raise ValueError(
            "the case set's report is not the one that was exported; import into the case set of the export"
        )
    before = form.values
    after = {name: _value(name, texts.get(control, [])) for name, control in CONTROLS.items()}
    if verdict != "reject":
        _check_deleted(before, after)
    return ReportReview(annotation, verdict, "\n".join(texts.get(REPORT_NOTE, [])), before, after, file)


def _content(control: str, result: Mapping[str, Any]) -> list[str]:
    """The texts or choices of a result."""
    value = result.get("value", {})
    content = value.get("text") if result["type"] == "textarea" else value.get("choices")
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise ValueError(f"{control}: found {result['type']} with {str(value)[:60]}, wanted texts or choices")
    return content


def _verdict(chosen: list[str]) -> Decision | None:
    """The verdict on the report."""
    if not chosen:
        return None
    if len(set(chosen)) > 1 or chosen[0] not in DECISIONS:
        raise ValueError(f"{REPORT_VERDICT}: found {', '.join(chosen)}, wanted one of {', '.join(DECISIONS)}")
    return chosen[0]


def _value(name: str, texts: list[str]) -> Value:
    """The content of a field: a section's texts are put together, keywords are one a line."""
    if name in SECTIONS:
        text = "\n".join(part.replace("\r\n", "\n").strip() for part in texts).strip()
        return (text,) if text else ()
    if name == FINDINGS_FIELD:
        return _findings(texts)
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return tuple(line for line in lines if line)


def _findings(names: list[str]) -> Value:
    """Ids of chosen findings.

    Raises:
        ValueError: the taxonomy does not have one; the message names the nearest.
    """
    found: dict[str, None] = {}
    for name in names:
        finding = FINDINGS.get(name) or lookup(name)
        if finding is None:
            raise ValueError(f"findings: found {name!r}, which the taxonomy does not have; nearest: {nearest(name)!r}")
        found[finding.id] = None
    return tuple(found)


def _check_deleted(before: Mapping[str, Value], after: Mapping[str, Value]) -> None:
    """Nothing that had content comes back empty."""
    deleted = [name for name in FIELDS if before[name] and not after[name]]
    if not deleted:
        return
    hint = ""
    if not any(after.values()):
        hint = " (an annotation that was not begun from the prediction? take it as the project's pre-labels)"
    raise ValueError(f"{', '.join(deleted)}: found nothing, wanted the text, corrected; or the verdict reject{hint}")
