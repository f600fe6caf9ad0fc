"""Findings evened out within each data set, so that a rare finding is not known by the data set that it is rare in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from cogalign.data.case import Case
from cogalign.data.spread import spread_evenly


def balanced(cases: Sequence[Case], most: int) -> list[Case]:
    """The cases, and some of them again, so that within each data set the findings are taken about equally often.

    Within a data set every set of findings is brought up to the most frequent one, as far as `most` allows. Where the
    last round is not whole, the cases taken once more are spread evenly over the cases in order. Nothing is drawn,
    nothing is left out, and data sets are not evened out against each other. A data set with one set of findings stays
    as it is, and so do question cases, which have no findings.

    Args:
        cases: of one split.
        most: how often a case is taken at most; 1 changes nothing.

    Returns:
        First all cases in their order, then the second takes in that order, then the third, and so on.

    Raises:
        ValueError: `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most: found {most}, wanted a whole number from 1")
    takes = _takes(cases, most)
    return [case for round_ in range(most) for case, taken in zip(cases, takes, strict=True) if taken > round_]


def _takes(cases: Sequence[Case], most: int) -> list[int]:
    """How often each case is taken."""
    members: dict[str, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, case in enumerate(cases):
        if not case.is_question:
            members[case.dataset][tuple(sorted(set(case.findings)))].append(index)
    takes: Counter[int] = Counter(range(len(cases)))
    for kinds in members.values():
        largest = max(len(places) for places in kinds.values())
        for places in kinds.values():
            whole, rest = divmod(min(largest, most * len(places)), len(places))
            takes.update({place: whole - 1 for place in places})
            # spread_evenly takes None for "all", 0 must stay none.
            takes.update(spread_evenly(places, rest) if rest else ())
    return [takes[index] for index in range(len(cases))]
