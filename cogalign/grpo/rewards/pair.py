"""The reward `pair`: answers to a case and to its counterfactual agree or differ as the intervention demands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cogalign.cognition.anatomy import organ_in
from cogalign.cognition.report import Report, parse
from cogalign.grpo.rewards.diagnosis import f1
from cogalign.grpo.rewards.protocol import Completion, completion_text


@dataclass(frozen=True)
class _Answer:
    report: Report
    gold: frozenset[str]
    organ: str | None
    """The organ of the case; None if it is not known."""


def pair_reward(
    completions: Sequence[Completion],
    id: Sequence[str],
    counterfactual_of: Sequence[str | None],
    intervention: Sequence[str | None],
    findings: Sequence[Iterable[str] | None],
    organ: Sequence[str | None] | None = None,
    **_: Any,
) -> list[float | None]:
    """Mean agreement with the partner's completions in the batch; None for a completion without a partner there.

    With f an answer to the factual case and c one to its counterfactual:

    - `removal`: [c says exactly what is left: normal alone, or the findings that remain] F1(f) (1 + L) / 2, where L = 1
      when both name the same organ, and it is the case's. Where the case's organ is not known, the factor is left out.
    - `control`, `transplant`, `background`: [f and c say the same set] F1(f).

    F1 is that of `diagnosis_f1_reward` against the factual case's findings: two answers that agree on something wrong,
    `normal` to everything, and empty answers earn nothing.

    Args:
        completions: What the model wrote.
        id: Ids of the cases.
        counterfactual_of: Id of the factual case; None or empty for a factual case.
        intervention: What was done to it.
        findings: The case's findings.
        organ: The case's organ.
    """
    organs = [None] * len(completions) if organ is None else [None if o in (None, "", "unknown") else o for o in organ]
    rows = zip(completions, findings, organs, strict=True)
    answers = [_Answer(parse(completion_text(c)), frozenset(gold or ()), place) for c, gold, place in rows]
    factual: dict[str, list[int]] = defaultdict(list)
    for index, (case, source) in enumerate(zip(id, counterfactual_of, strict=True)):
        if not source:
            factual[case].append(index)
    earned: list[list[float]] = [[] for _ in answers]
    for index, (source, what) in enumerate(zip(counterfactual_of, intervention, strict=True)):
        for partner in factual.get(source or "", ()):
            judge = _JUDGES.get(what or "")
            if judge is not None:
                value = judge(answers[partner], answers[index])
                earned[index].append(value)
                earned[partner].append(value)
    return [fmean(values) if values else None for values in earned]


def _removal(factual: _Answer, removed: _Answer) -> float:
    """The diagnosis goes from the right one to what is left of it, mostly normal, and the location stays."""
    flipped = float(removed.report.agrees_with(removed.gold)) * f1(factual.report, factual.gold - {"normal"})
    if factual.organ is None:
        return flipped
    places = {organ_in(factual.report.location), organ_in(removed.report.location)}
    return flipped * (1 + (places == {factual.organ})) / 2


def _kept(factual: _Answer, other: _Answer) -> float:
    """Both say the same, and it is right."""
    return float(_said(factual.report) == _said(other.report)) * f1(factual.report, factual.gold)


def _said(report: Report) -> set[str]:
    return {*report.diagnosis, *report.unknown}


_JUDGES = {"removal": _removal, "control": _kept, "transplant": _kept, "background": _kept}
"""By intervention; a pair of another kind is not judged."""
