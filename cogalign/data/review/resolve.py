"""One report from the reviews of several people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cogalign.data.review.fields import FIELDS, FINDINGS_FIELD, Value, plain
from cogalign.data.review.report_import import ReportReview, same

Rule = Literal["refuse", "latest", "first", "majority"]
RULES: tuple[Rule, ...] = get_args(Rule)
REPORT = "report"
"""Name of the decision whether the report is rejected, beside those of the fields."""


@dataclass(frozen=True)
class Outcome:
    """What the reviews of a case come to.

    Args:
        reviews: all of them, the oldest first.
        rejected: the report is rejected.
        values: content of each field; empty if it is rejected.
        disputed: what they differed in: fields, or `report`.
    """

    reviews: tuple[ReportReview, ...]
    rejected: bool
    values: dict[str, Value]
    disputed: tuple[str, ...]


def resolve(reviews: Iterable[ReportReview], rule: str = "refuse") -> dict[str, Outcome]:
    """The outcome for each case.

    Where all agree on a field it is taken. Else `latest` and `first` take the whole annotation that was changed last
    or first; `majority` takes for each field what more than half of those say who did not reject the report, and
    rejects the report if more than half of all do; `refuse` stops. An annotation marked as ground truth counts alone.

    Args:
        reviews: of all files, at most one a person and case.
        rule: one of `RULES`.

    Raises:
        ValueError: another rule; or differences that the rule does not settle, all of them listed.
    """
    if rule not in RULES:
        raise ValueError(f"--resolve: found {rule!r}, wanted one of {', '.join(RULES)}")
    by_case: dict[str, list[ReportReview]] = defaultdict(list)
    for review in reviews:
        by_case[review.case.id].append(review)
    outcomes: dict[str, Outcome] = {}
    conflicts: list[str] = []
    for case_id, several in by_case.items():
        ordered = sorted(several, key=lambda review: review.annotation.when)
        outcome, open_fields = _settle(ordered, rule)
        outcomes[case_id] = outcome
        conflicts += [_conflict(case_id, name, ordered) for name in open_fields]
    if conflicts:
        ways = "ties are left" if rule == "majority" else "settle them in Label Studio, or choose a rule with --resolve"
        raise ValueError(f"{len(conflicts)} differences between annotators; {ways}:\n" + "\n".join(conflicts))
    return outcomes


def _settle(ordered: Sequence[ReportReview], rule: str) -> tuple[Outcome, list[str]]:
    """The outcome of a case, and the fields that stay open."""
    voices = [review for review in ordered if review.annotation.ground_truth] or list(ordered)
    kept = [review for review in voices if not review.rejected]
    disputed = [REPORT] if 0 < len(kept) < len(voices) else []
    disputed += [
        name for name in FIELDS if any(not same(name, kept[0].after[name], other.after[name]) for other in kept)
    ]
    if disputed and rule in ("latest", "first"):
        voices = [voices[-1] if rule == "latest" else voices[0]]
        kept = [review for review in voices if not review.rejected]
        left: list[str] = []
    elif rule == "majority":
        rejections = len(voices) - len(kept)
        left = [REPORT] if 2 * rejections == len(voices) else []
        if 2 * rejections > len(voices):
            kept = []
    else:
        left = list(disputed)
    values: dict[str, Value] = {}
    for name in FIELDS if kept else ():
        value = _most(name, kept)
        if value is None and name not in left:
            left.append(name)
        values[name] = kept[0].after[name] if value is None else value
    return Outcome(tuple(ordered), not kept, values, tuple(disputed)), left


def _most(name: str, kept: Sequence[ReportReview]) -> Value | None:
    """What more than half say of a field; None if nothing is."""
    votes = Counter(_key(name, review.after[name]) for review in kept)
    key, number = votes.most_common(1)[0]
    if 2 * number <= len(kept):
        return None
    return next(review.after[name] for review in kept if _key(name, review.after[name]) == key)


def _key(name: str, value: Value) -> Value:
    """The same for all contents that say the same."""
    return tuple(sorted(value)) if name == FINDINGS_FIELD else tuple(map(str.strip, value))


def _conflict(case_id: str, name: str, reviews: Sequence[ReportReview]) -> str:
    """A line on a difference: who says what."""
    said = []
    for review in reviews:
        word = "reject" if review.rejected else "keep" if name == REPORT else repr(plain(name, review.after[name]))
        said.append(f"{review.annotation.by or 'somebody'}: {word}")
    return f"case {case_id!r}, {name}: " + "; ".join(said)
