"""Agreement of the teacher with reviewers, and of reviewers with one another, from a review's journal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from cogalign.cognition.report import SECTIONS
from cogalign.data.review.fields import DECISIONS, FIELDS, FINDINGS_FIELD, Decision, as_value
from cogalign.data.review.journal import Entry
from cogalign.data.review.report_import import same
from cogalign.data.review.statistics import (
    Estimate,
    bootstrap,
    cohen_kappa,
    distance,
    krippendorff_alpha,
    mean,
    share,
)

EVERYBODY = "all"
NAMELESS = "unknown"
"""Stands for an annotator that the file does not name."""


@dataclass(frozen=True)
class FieldRow:
    """What an annotator did with a field of the teacher's reports.

    Args:
        annotator: who; `all` for everybody.
        field: one of `FIELDS`.
        n: reports.
        shares: of each decision, Wilson's interval.
        change: of sections, mean normalised edit distance between before and after, of reports not rejected.
    """

    annotator: str
    field: str
    n: int
    shares: dict[Decision, Estimate]
    change: Estimate | None


@dataclass(frozen=True)
class Pair:
    """How two annotators agree on the cases that both reviewed.

    Args:
        one, other: who.
        cases: cases that both did.
        verdict: share of cases that both rejected, or both kept.
        findings: share of cases with the same findings, of those that both kept.
        kappa: Cohen's kappa of the findings, each combination of findings one label.
        sections: mean similarity (1 - normalised edit distance) of their texts by section.
    """

    one: str
    other: str
    cases: int
    verdict: Estimate
    findings: Estimate
    kappa: Estimate
    sections: dict[str, Estimate]


@dataclass(frozen=True)
class Agreement:
    """All figures of a journal.

    Args:
        cases: reviewed cases.
        annotators: who, in the order of the journal.
        teacher: the teacher against the reviewers.
        teacher_kappa: Cohen's kappa of the findings, teacher against each annotator and `all`.
        pairs: the reviewers against one another.
        mean_kappa: mean of the pairs' kappas; None without any.
        alpha: Krippendorff's alpha of the findings over all reviewers.
    """

    cases: int
    annotators: list[str]
    teacher: list[FieldRow]
    teacher_kappa: dict[str, Estimate]
    pairs: list[Pair]
    mean_kappa: float | None
    alpha: Estimate

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def agreement(entries: Iterable[Entry]) -> Agreement:
    """The figures of a journal.

    Of several reviews of a field by one person the last one counts. A later round shows what an earlier one left, so the
    teacher's content of a field is what was shown first, to whomever, and each decision is on that.

    Args:
        entries: the oldest first.
    """
    first: dict[tuple[str, str], str | list[str]] = {}
    last: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        teacher_said = first.setdefault((entry.case, entry.field), entry.before)
        last[(entry.annotator or NAMELESS, entry.case, entry.field)] = _against(entry, teacher_said)
    annotators = list(dict.fromkeys(who for who, _, _ in last))
    by_person: dict[str, dict[tuple[str, str], Entry]] = {who: {} for who in annotators}
    for (who, case, name), entry in last.items():
        by_person[who][case, name] = entry
    everything = list(last.values())
    teacher = _rows(EVERYBODY, everything) if len(annotators) > 1 else []
    kappas = {EVERYBODY: _teacher_kappa(everything)} if len(annotators) > 1 else {}
    for who in annotators:
        teacher += _rows(who, list(by_person[who].values()))
        kappas[who] = _teacher_kappa(list(by_person[who].values()))
    pairs = [_pair(one, other, by_person[one], by_person[other]) for one, other in combinations(annotators, 2)]
    pairs = [pair for pair in pairs if pair.cases]
    known = [pair.kappa.value for pair in pairs if pair.kappa.value is not None]
    return Agreement(
        cases=len({case for _, case, _ in last}),
        annotators=annotators,
        teacher=teacher,
        teacher_kappa=kappas,
        pairs=pairs,
        mean_kappa=sum(known) / len(known) if known else None,
        alpha=bootstrap(_units(everything), krippendorff_alpha),
    )


def _against(entry: Entry, before: str | list[str]) -> Entry:
    """An entry as if its annotator had been shown `before`; a rejection stays one."""
    if entry.before == before:
        return entry
    kept: Decision = "pass" if same(entry.field, as_value(before), as_value(entry.after)) else "revised"
    return replace(entry, before=before, decision="reject" if entry.decision == "reject" else kept)


def _rows(who: str, entries: Sequence[Entry]) -> list[FieldRow]:
    """The rows of an annotator, one a field."""
    rows = []
    for name in FIELDS:
        of_field = [entry for entry in entries if entry.field == name]
        if not of_field:
            continue
        n = len(of_field)
        shares = {word: share(sum(e.decision == word for e in of_field), n) for word in DECISIONS}
        kept = [entry for entry in of_field if entry.decision != "reject"]
        change = mean([distance(str(e.before), str(e.after)) for e in kept]) if name in SECTIONS else None
        rows.append(FieldRow(who, name, n, shares, change))
    return rows


def _label(entry: Entry, before: bool = False) -> str:
    """A combination of findings as one label."""
    return "+".join(sorted(entry.before if before else entry.after))


def _kept_findings(entries: Iterable[Entry]) -> list[Entry]:
    """The findings of reports that were not rejected: of the others no correction is known."""
    return [entry for entry in entries if entry.field == FINDINGS_FIELD and entry.decision != "reject"]


def _kappa(items: Sequence[tuple[str, str]]) -> float | None:
    return cohen_kappa([one for one, _ in items], [other for _, other in items])


def _teacher_kappa(entries: Sequence[Entry]) -> Estimate:
    """Kappa of the findings before against after."""
    return bootstrap([(_label(entry, before=True), _label(entry)) for entry in _kept_findings(entries)], _kappa)


def _units(entries: Sequence[Entry]) -> list[list[str]]:
    """For each case that two or more kept, their findings."""
    units: dict[str, list[str]] = defaultdict(list)
    for entry in _kept_findings(entries):
        units[entry.case].append(_label(entry))
    return [labels for labels in units.values() if len(labels) > 1]


def _pair(one: str, other: str, first: dict[tuple[str, str], Entry], second: dict[tuple[str, str], Entry]) -> Pair:
    """Agreement of two annotators."""
    both = [(entry, second[key]) for key, entry in first.items() if key in second]
    rejected: dict[str, tuple[bool, bool]] = {a.case: (a.decision == "reject", b.decision == "reject") for a, b in both}
    kept = [(a, b) for a, b in both if not any(rejected[a.case])]
    findings = [(_label(a), _label(b)) for a, b in kept if a.field == FINDINGS_FIELD]
    sections = {
        name: mean([1 - distance(str(a.after), str(b.after)) for a, b in kept if a.field == name]) for name in SECTIONS
    }
    return Pair(
        one=one,
        other=other,
        cases=len(rejected),
        verdict=share(sum(a == b for a, b in rejected.values()), len(rejected)),
        findings=share(sum(a == b for a, b in findings), len(findings)),
        kappa=bootstrap(findings, _kappa),
        sections=sections,
    )
