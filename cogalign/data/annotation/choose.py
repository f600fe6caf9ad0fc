"""Which cases are to be annotated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.annotation.outcome import annotation_of, is_current, is_own, is_read
from cogalign.data.annotation.settings import AnnotateSettings
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.splits import LEFT_OUT


def choose(case_set: CaseSet, settings: AnnotateSettings) -> tuple[list[Case], Counter[str]]:
    """Cases to annotate, those that failed before at the end, and why the others are not, counted.

    Left out are other splits (without `splits`: what the split left out), counterfactuals (their reports follow from their
    sources'), what a person has read, and, without `overwrite`, reports of a teacher that passed, and reports that came
    with the case or that somebody rewrote in `metadata.jsonl`. Templates of imports, and of the teacher `template` where
    another one is asked, count as no report.

    Raises:
        ValueError: `splits` names one that the case set does not have.
    """
    for name in settings.splits or ():
        case_set.split(name)
    fresh: list[Case] = []
    again: list[Case] = []
    left_out: Counter[str] = Counter()
    for case in case_set.cases:
        reason = _reason(case, settings)
        if reason:
            left_out[reason] += 1
        else:
            (again if annotation_of(case).get("status") == "failed" else fresh).append(case)
    chosen = [*fresh, *again]
    if settings.limit is not None and len(chosen) > settings.limit:
        left_out["beyond the limit"] = len(chosen) - settings.limit
        chosen = chosen[: settings.limit]
    return chosen, left_out


def _reason(case: Case, settings: AnnotateSettings) -> str:
    """Why a case is left out; empty if it is not."""
    if settings.splits is not None and case.split not in settings.splits:
        return "of other splits"
    if settings.splits is None and case.split == LEFT_OUT:
        return f"that the split left out (--splits {LEFT_OUT} annotates them)"
    if case.counterfactual_of is not None:
        return "counterfactuals"
    if is_read(case):
        return "read by a person"
    if not _is_known(case.findings):
        return "with findings that the taxonomy does not have"
    if settings.overwrite:
        return ""
    if is_own(case):
        return "with a report of their own"
    if is_current(case) and (settings.teacher == "template" or annotation_of(case).get("teacher") != "template"):
        return "annotated already"
    return ""


def _is_known(findings: Sequence[str]) -> bool:
    return all(finding in FINDINGS for finding in findings) and (len(findings) == 1 or "normal" not in findings)
