"""Cases whose split is given, such as a data set that is kept apart from training; the others are split around them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from cogalign.data.case import Case

HELD = "held_split"
"""Key of `Case.attributes`: the split in which a case stays whatever method splits the others."""
_OWN = ("train", "validation", "test")
"""Splits to which the other cases of a group follow: none of them is kept for one data set."""


def held_split(case: Case) -> str:
    """The split in which a case is to stay; empty where it may be drawn."""
    name = case.attributes.get(HELD)
    return name if isinstance(name, str) else ""


def place_held(cases: Sequence[Case], left_out: str) -> tuple[dict[str, str], list[str]]:
    """The splits that follow from given ones, by case id, and what there is to say about it.

    A case of a group with a given split (it shows the same photograph, or is of the same patient) cannot be drawn. It
    follows into `train`, `validation` or `test`. From any other split it is left out: what is kept for one data set
    holds only that. A group with several given splits stays as it is, for the leak report.

    Args:
        cases: with their joined groups.
        left_out: name of the split of cases that are not used.
    """
    homes: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if held_split(case):
            homes[case.group or case.id].add(held_split(case))
    found: dict[str, str] = {}
    followed: Counter[tuple[str, str]] = Counter()
    for case in cases:
        own, home = held_split(case), homes.get(case.group or case.id, set())
        if not home:
            continue
        found[case.id] = own or (min(home) if home <= set(_OWN) else left_out)
        if not own:
            followed[case.dataset or "cases of no data set", found[case.id]] += 1
    held = Counter(held_split(case) for case in cases if held_split(case))
    notes = [f"{number} cases stay in {name}, which their import names" for name, number in sorted(held.items())]
    for (dataset, split), number in sorted(followed.items()):
        where = "are left out" if split == left_out else f"go to {split}"
        notes.append(f"{dataset}: {number} cases {where}: their group has cases with a given split")
    return found, notes


def in_order(cases: Sequence[Case], drawn: Sequence[Case], placed: dict[str, str]) -> list[Case]:
    """All cases in their order: those that were drawn with their new split, the others where they were placed."""
    by_id = {case.id: case for case in drawn}
    return [by_id[case.id] if case.id in by_id else replace(case, split=placed[case.id]) for case in cases]
