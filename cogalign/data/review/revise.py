"""Cases with the reports that reviewers corrected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from cogalign.cognition.keywords import PER_SECTION
from cogalign.cognition.report import SECTIONS, Report, parse, render
from cogalign.data.case import Case
from cogalign.data.review.fields import FIELDS, FINDINGS_FIELD, KEYWORDS_PREFIX, Form, Value, form_of, report_of
from cogalign.data.review.report_import import same
from cogalign.data.review.resolve import Outcome
from cogalign.data.review.verdicts import Verdict

REASON = "report rejected in review"


@dataclass
class Revisions:
    """What the reviews make of the cases.

    Args:
        cases: reviewed cases by id, corrected or not, with who reviewed them.
        revised: ids of those whose report changed.
        verdicts: rejections by case id.
        told: changes that reach beyond the report, e.g. other findings.
    """

    cases: dict[str, Case] = field(default_factory=dict)
    revised: list[str] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def revise(outcomes: Mapping[str, Outcome]) -> Revisions:
    """Apply the outcomes to their cases: reports rendered anew, keywords and findings checked.

    Raises:
        ValueError: a keyword does not occur in its section, a text would be read as a heading, findings contradict
            one another, or a lesion's finding is gone; the message lists case and field of all of them.
    """
    done = Revisions()
    problems: list[str] = []
    for case_id, outcome in outcomes.items():
        case = outcome.reviews[0].case
        people = list(dict.fromkeys(review.annotation.by for review in outcome.reviews if review.annotation.by))
        if outcome.rejected:
            by = [review for review in outcome.reviews if review.rejected]
            note = "; ".join(filter(None, [REASON, *(review.remark for review in by)]))
            done.verdicts[case_id] = Verdict("reject", ", ".join(filter(None, (r.annotation.by for r in by))), note)
            done.cases[case_id] = _reviewed(case, "rejected", people)
            continue
        before = form_of(case).values
        changed = [name for name in FIELDS if not same(name, before[name], outcome.values[name])]
        wrong = _problems(before, outcome.values, changed)
        if not wrong:
            try:
                drawn = any(review.annotation.has_regions for review in outcome.reviews)
                new = corrected(case, outcome.values, changed, done.told, drawn)
            except ValueError as error:
                wrong = [str(error)]
        if wrong:
            problems += [f"case {case_id!r}, {text}" for text in wrong]
            continue
        done.cases[case_id] = _reviewed(new, "revised" if changed else "passed", people)
        if changed:
            done.revised.append(case_id)
    if problems:
        raise ValueError("\n".join(problems))
    return done


def corrected(
    case: Case, values: Mapping[str, Value], changed: Iterable[str], told: list[str], drawn: bool = False
) -> Case:
    """The case with corrected fields; the very same case if none changed and its diagnosis says its findings.

    Args:
        case: as it was reviewed.
        values: content of all fields.
        changed: names of those that changed.
        told: gets a line for each change that reaches beyond the report.
        drawn: lesions came back too, whose boxes will take the place of the case's.

    Raises:
        ValueError: see `revise`, without the case.
    """
    changed = list(changed)
    findings = _ordered(case, values[FINDINGS_FIELD])
    if Form(dict(values)).empty:
        return _without_report(case, findings, changed, told, drawn)
    if not changed and report_of(case).agrees_with(findings):
        return case
    if not changed:
        told.append(f"case {case.id!r}: the diagnosis did not say its findings ({', '.join(findings)}), now it does")
    answer = rendered(values, findings)
    keywords = {section: list(values[KEYWORDS_PREFIX + section]) for section in SECTIONS}
    new = replace(case, answer=answer, keywords=keywords if any(keywords.values()) else case.keywords)
    return _with_findings(new, findings, told, drawn) if FINDINGS_FIELD in changed else new


def _without_report(case: Case, findings: tuple[str, ...], changed: list[str], told: list[str], drawn: bool) -> Case:
    """A case that has no report, before and after."""
    if FINDINGS_FIELD not in changed:
        return case
    if case.answer:
        raise ValueError("findings: changed, but the answer is no report that could say so; wanted its three sections")
    return _with_findings(case, findings, told, drawn)


def rendered(values: Mapping[str, Value], findings: tuple[str, ...]) -> str:
    """The report as text, which reads back as the same report.

    Raises:
        ValueError: a section is empty, or holds what would be read as a heading or a diagnosis.
    """
    sections = {name: "".join(values[name]).strip() for name in SECTIONS}
    for name, text in sections.items():
        if not text:
            raise ValueError(f"{name}: found no text, wanted what is seen, as the other sections have one")
    report = Report(sections["location"], sections["morphology"], sections["microvasculature"], findings)
    text = render(report)
    if parse(text) != report:
        wrong = next((n for n in SECTIONS if getattr(parse(text), n) != sections[n]), "findings")
        raise ValueError(f"{wrong}: found a heading or a diagnosis within the sections, wanted their text alone")
    return text


def _ordered(case: Case, value: Value) -> tuple[str, ...]:
    """Findings in the case's order, new ones behind."""
    return (*(f for f in case.findings if f in value), *(f for f in value if f not in case.findings))


def _with_findings(case: Case, findings: tuple[str, ...], told: list[str], drawn: bool) -> Case:
    """The case with other findings; its boxes and mask follow.

    Boxes of a finding that a single other replaced become the other's. A case that is normal now has no lesion.

    Raises:
        ValueError: boxes hold a finding that is gone, and it is not clear what they are now.
    """
    told.append(f"case {case.id!r}: findings {', '.join(case.findings)} became {', '.join(findings)}")
    if findings == ("normal",):
        if case.boxes or case.mask_file_name:
            told.append(f"case {case.id!r}: is normal now, so that its mask and boxes are dropped")
        attributes = {name: value for name, value in case.attributes.items() if name != "mask"}
        return replace(case, findings=findings, boxes=(), mask_file_name=None, attributes=attributes)
    gone = sorted({box.finding for box in case.boxes} - set(findings))
    if gone and drawn:
        return replace(case, findings=findings, boxes=tuple(box for box in case.boxes if box.finding not in gone))
    if gone and len(findings) > 1:
        raise ValueError(
            f"findings: {', '.join(gone)} is gone, but boxes have it, and they may be any of {', '.join(findings)}; "
            "label the regions anew"
        )
    if gone:
        told.append(f"case {case.id!r}: boxes of {', '.join(gone)} are {findings[0]} now")
    boxes = tuple(replace(box, finding=findings[0]) if box.finding in gone else box for box in case.boxes)
    return replace(case, findings=findings, boxes=boxes)


def _problems(before: Mapping[str, Value], values: Mapping[str, Value], changed: Iterable[str]) -> list[str]:
    """What is wrong with corrected findings and keywords."""
    changed = set(changed)
    wrong = []
    findings = values[FINDINGS_FIELD]
    if FINDINGS_FIELD in changed and "normal" in findings and len(findings) > 1:
        wrong.append(f"findings: found {', '.join(findings)}, wanted normal alone or not at all")
    for section in SECTIONS:
        name = KEYWORDS_PREFIX + section
        if changed & {section, name}:
            wrong += _keyword_problems(section, before[name], values[name], "".join(values[section]))
    return wrong


def _keyword_problems(section: str, before: Value, words: Value, text: str) -> list[str]:
    """Keywords that do not fit the text of their section: absent, twice, too many or too few."""
    name = KEYWORDS_PREFIX + section
    wrong = []
    for word in words:
        if word.casefold() not in text.casefold():
            near = _nearest(word, text)
            hint = f"; nearest: {near!r}" if near else ""
            wrong.append(f"{name}: {word!r} does not occur in the section's text{hint}")
    folded = [word.casefold() for word in words]
    if len(set(folded)) < len(folded):
        twice = next(word for word in folded if folded.count(word) > 1)
        wrong.append(f"{name}: found {twice!r} twice, wanted different keywords")
    if len(words) > PER_SECTION or len(words) < min(PER_SECTION, len(before)):
        wrong.append(f"{name}: found {len(words)} keywords, wanted {PER_SECTION}")
    return wrong


def _nearest(word: str, text: str) -> str:
    """The words of a text, side by side, that are most like a keyword; empty for an empty text."""
    tokens = [token.strip(".,;:()") for token in text.split()]
    size = max(1, len(word.split()))
    pieces = [
        " ".join(tokens[i : i + n]) for n in {max(1, size - 1), size, size + 1} for i in range(len(tokens) - n + 1)
    ]
    folded = {piece.casefold(): piece for piece in pieces if piece}
    close = get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.0)
    return folded[close[0]] if close else ""


def _reviewed(case: Case, status: str, people: list[str]) -> Case:
    """The case with the state of its annotation; the last review decides, reviewers add up."""
    found = case.attributes.get("annotation") or {}
    old: dict[str, Any] = found if isinstance(found, dict) else {"note": found}
    earlier = old.get("reviewers")
    reviewers = list(dict.fromkeys([*(earlier if isinstance(earlier, list) else []), *people]))
    return replace(
        case, attributes={**case.attributes, "annotation": {**old, "status": status, "reviewers": reviewers}}
    )
