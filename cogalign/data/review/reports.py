"""Reviews of reports, from annotations to corrected cases, journal and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.review.agreement import agreement
from cogalign.data.review.agreement_text import agreement_text
from cogalign.data.review.annotations import Annotation
from cogalign.data.review.journal import JOURNAL, entries_of, journal_text, read_journal
from cogalign.data.review.report_import import report_reviews
from cogalign.data.review.resolve import resolve
from cogalign.data.review.revise import revise
from cogalign.data.review.verdicts import Verdict

AGREEMENT = ("agreement.json", "agreement.md")


@dataclass
class Reports:
    """What the reviews of reports come to; everything is empty where none was reviewed.

    Args:
        cases: reviewed cases by id, as they are now.
        verdicts: rejections by case id.
        files: texts of the files for the new case set by name.
        counts: numbers of reports.
        told: what the user should know.
    """

    cases: dict[str, Case] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def apply_reports(annotations: Sequence[tuple[str, Sequence[Annotation]]], case_set: CaseSet, rule: str) -> Reports:
    """Read, resolve and apply the reviews of reports.

    The journal goes on where that of the case set ends; the figures are about all of it.

    Args:
        annotations: name and annotations of each export.
        case_set: the reviewed case set.
        rule: what to do where annotators differ, see `resolve`.

    Raises:
        ValueError: see `report_reviews`, `resolve`, `revise` and `read_journal`.
    """
    done = Reports()
    reviews, done.told = report_reviews(annotations)
    if not reviews:
        return done
    outcomes = resolve(reviews, rule)
    revisions = revise(outcomes)
    done.told += revisions.told
    done.cases, done.verdicts = revisions.cases, revisions.verdicts
    entries = [*read_journal(case_set.root), *entries_of(outcomes.values())]
    figures = agreement(entries)
    done.files = {
        JOURNAL: journal_text(entries),
        AGREEMENT[0]: json.dumps(figures.plain(), indent=2, ensure_ascii=False) + "\n",
        AGREEMENT[1]: agreement_text(figures, done.told),
    }
    revised, rejected = len(revisions.revised), len(revisions.verdicts)
    done.counts = {
        "reports passed": len(outcomes) - revised - rejected,
        "reports revised": revised,
        "reports rejected": rejected,
        "reports disputed": sum(bool(outcome.disputed) for outcome in outcomes.values()),
    }
    return done


def with_rejections(verdicts: Mapping[str, Verdict], reports: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Verdicts on images and masks with those on reports: a rejected report takes its case out either way."""
    return {**verdicts, **reports}
