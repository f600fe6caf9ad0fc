"""Soft credit for the diagnosis: set F1, and F1 in which near misses count in part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from cogalign.cognition.kinship import nearness
from cogalign.cognition.report import Report, parse
from cogalign.grpo.rewards.protocol import Completion, completion_text


def diagnosis_f1_reward(
    completions: Sequence[Completion], findings: Sequence[Iterable[str] | None], **_: Any
) -> list[float | None]:
    """F1 of the set of diagnoses: 2 |P and G| / (|P| + |G|).

    A name that the taxonomy does not know is a false positive. `normal` beside a finding contradicts itself and earns 0.

    Args:
        completions: What the model wrote.
        findings: The case's findings (ids of the taxonomy); a case without any is not judged (None).
    """
    return _judged(completions, findings, near=False)


def diagnosis_near_reward(
    completions: Sequence[Completion], findings: Sequence[Iterable[str] | None], **_: Any
) -> list[float | None]:
    """As `diagnosis_f1_reward`, but a relative counts in part (`cogalign.cognition.kinship`): 2 S / (|P| + |G|).

    S is the nearness of the diagnoses to the case's findings, each of them matched once, the nearest first.

    Args:
        completions: What the model wrote.
        findings: The case's findings (ids of the taxonomy); a case without any is not judged (None).
    """
    return _judged(completions, findings, near=True)


def f1(report: Report, gold: Collection[str], *, near: bool = False) -> float:
    """F1 of a report's diagnoses and the findings `gold`, hard or with part credit for relatives."""
    said = set(report.diagnosis)
    if "normal" in said and len(said) + len(report.unknown) > 1:
        return 0.0
    wanted = set(gold)
    matched = _near_matches(said, wanted) if near else float(len(said & wanted))
    size = len(said) + len(report.unknown) + len(wanted)
    return 2 * matched / size if size else 0.0


def _judged(
    completions: Sequence[Completion], findings: Sequence[Iterable[str] | None], *, near: bool
) -> list[float | None]:
    golds = [set(found or ()) for found in findings]
    return [
        f1(parse(completion_text(completion)), gold, near=near) if gold else None
        for completion, gold in zip(completions, golds, strict=True)
    ]


def _near_matches(said: set[str], wanted: set[str]) -> float:
    """Sum of nearness over one-to-one matches, nearest first.

    That is the best sum, since a match displaces at most two others and nearness is 1, 1/2 or 1/4.
    """
    near = sorted((-nearness(a, b), a, b) for a in said for b in wanted if nearness(a, b) > 0)
    total, used_said, used_wanted = 0.0, set[str](), set[str]()
    for value, a, b in near:
        if a not in used_said and b not in used_wanted:
            used_said.add(a)
            used_wanted.add(b)
            total -= value
    return total
