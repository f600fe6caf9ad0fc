"""The report in Label Studio: controls of the labelling interface and the results that fill them in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from xml.sax.saxutils import quoteattr

from cogalign.cognition.keywords import PER_SECTION
from cogalign.cognition.report import HEADINGS, SECTIONS
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.case import Case
from cogalign.data.review.fields import (
    CONTROLS,
    DECISIONS,
    FINDINGS_FIELD,
    KEYWORDS_PREFIX,
    REPORT_NOTE,
    REPORT_VERDICT,
    finding_names,
    form_of,
)


def report_controls(cases: Iterable[Case], image: str) -> list[str]:
    """Lines of the labelling configuration for a report: sections, keywords, findings, verdict and remark.

    All findings of the taxonomy can be chosen, those of the case set first. A section is one text that can be edited;
    keywords are up to three texts, one a line.

    Args:
        cases: the cases of the case set.
        image: name of the image that the controls belong to.
    """
    present = {finding for case in cases for finding in case.findings}
    names = sorted(FINDINGS, key=lambda finding: finding not in present)
    lines = []
    for section in SECTIONS:
        lines.append(f'  <Header value={quoteattr(HEADINGS[section])} size="5"/>')
        lines.append(_text_area(CONTROLS[section], image, f"{section}: what is seen", 4, 1))
        lines.append('  <Header value="Keywords, one a line" size="6"/>')
        keywords = CONTROLS[KEYWORDS_PREFIX + section]
        lines.append(_text_area(keywords, image, f"{section}: a keyword of this text, then Enter", 1, PER_SECTION))
    lines.append('  <Header value="Findings" size="5"/>')
    lines += choices(CONTROLS[FINDINGS_FIELD], image, finding_names(tuple(names)), "multiple")
    lines.append('  <Header value="Report" size="5"/>')
    lines += choices(REPORT_VERDICT, image, DECISIONS, "single-radio")
    lines.append(_text_area(REPORT_NOTE, image, "remark on the report, then Enter", 1, 1))
    return lines


def choices(name: str, image: str, values: Iterable[str], kind: str) -> list[str]:
    """Lines of a `Choices` control; `kind` is `multiple` or `single-radio`."""
    entries = [f"    <Choice value={quoteattr(value)}/>" for value in values]
    opening = f'  <Choices name="{name}" toName="{image}" choice="{kind}" showInline="true">'
    return [opening, *entries, "  </Choices>"]


def _text_area(name: str, image: str, placeholder: str, rows: int, most: int) -> str:
    return (
        f'  <TextArea name="{name}" toName="{image}" placeholder={quoteattr(placeholder)} '
        f'rows="{rows}" maxSubmissions="{most}" editable="true"/>'
    )


def report_results(case: Case, image: str) -> list[dict[str, Any]]:
    """The report of a case as results of a prediction, so that the form is filled in.

    A field without content has no result. Findings that the taxonomy does not have cannot be chosen and are left out
    by Label Studio; `cogalign data check` names them.
    """
    form = form_of(case)
    results = []
    for name, value in form.values.items():
        if not value:
            continue
        chosen = name == FINDINGS_FIELD
        content = {"choices": finding_names(value)} if chosen else {"text": list(value)}
        results.append(
            {
                "id": CONTROLS[name],
                "from_name": CONTROLS[name],
                "to_name": image,
                "type": "choices" if chosen else "textarea",
                "value": content,
            }
        )
    return results
