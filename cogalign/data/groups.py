"""Groups that hold together what must not be torn apart: patients, videos, repeated photographs, counterfactuals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from cogalign.data.case import Case
from cogalign.data.duplicates import informative, near_duplicates
from cogalign.data.images import Fingerprint

GIVEN = "given_group"
"""Key of `Case.attributes`: the group that a case came with, where photographs or counterfactuals joined it to another."""


def given_group(case: Case) -> str:
    """The group that a case came with, before anything was joined; empty if it had none."""
    given = case.attributes.get(GIVEN)
    return given if isinstance(given, str) else case.group


def photographs(prints: Sequence[Fingerprint]) -> list[int]:
    """A label for each image, equal for images of one photograph: see `near_duplicates`.

    Images that show too little to be recognised (`informative`) are a photograph each, even with equal pixels: all
    videos have black frames.
    """
    labels = near_duplicates(prints)
    several = Counter(labels)
    plain: dict[str, bool] = {}
    for index, label in enumerate(labels):
        if several[label] > 1:
            print_ = prints[index]
            if print_.digest not in plain:
                plain[print_.digest] = not informative(print_)
            if plain[print_.digest]:
                labels[index] = index
    return labels


def with_joined_groups(
    cases: Sequence[Case], labels: Sequence[Hashable], sets: Sequence[int] | None = None
) -> list[Case]:
    """The cases with their joined group; `attributes.given_group` keeps the given one where it is another.

    Joins start from the given groups each time: a case that has lost what linked it to others gets its own group back.

    Args:
        cases: ids must be unique.
        labels: equal for cases that show the same photograph.
        sets: see `joined_groups`. Given groups of the same name in two sets get two names first, so that they stay apart.
    """
    own = [_regrouped(case, given_group(case), given_group(case)) for case in cases]
    if sets is not None:
        alone = [replace(case, counterfactual_of=None) if case.counterfactual_of else case for case in own]
        names = joined_groups(alone, range(len(own)), sets)
        own = [_regrouped(case, name, name) for case, name in zip(own, names, strict=True)]
    groups = joined_groups(own, labels)
    return [_regrouped(case, group, case.group) for case, group in zip(own, groups, strict=True)]


def _regrouped(case: Case, group: str, given: str) -> Case:
    """The case in a group, with the given one noted if it is another."""
    noted = None if group == given else given
    if case.group == group and case.attributes.get(GIVEN) == noted:
        return case
    attributes = {key: value for key, value in case.attributes.items() if key != GIVEN}
    return replace(case, group=group, attributes=attributes if noted is None else attributes | {GIVEN: noted})


def joined_groups(
    cases: Sequence[Case], photographs: Sequence[Hashable], sets: Sequence[int] | None = None
) -> list[str]:
    """The group of each case once groups, repeated photographs and counterfactuals are joined.

    Two cases belong together when they show the same photograph, when they have the same group and are of one case
    set or of one data set, or when one was made of the other or both of the same case, be that case here or not; chains
    count. A group is named by the smallest of the names given to its cases, else by the
    smallest id. A case that stays alone without a name gets none. Groups of the same name in two case sets of different
    data sets are two groups, and get two names.

    The background of a transplant joins nothing: backgrounds are drawn from all cases, so that they would link nearly all
    of them (see `splits.without_crossing_backgrounds`).

    Args:
        cases: ids must be unique.
        photographs: a label for each case, equal for cases that show the same photograph.
        sets: the number of the case set that each case comes from; by default all are of one.
    """
    keys: list[tuple[Hashable, ...]] = []
    for case, label, number in zip(cases, photographs, sets or [0] * len(cases), strict=True):
        given = (("set", number, case.group), ("data set", case.dataset, case.group)) if case.group else ()
        keys.append((("photograph", label), ("case", case.counterfactual_of or case.id), ("case", case.id), *given))
    roots = _joined(keys)
    members: dict[int, list[Case]] = {}
    for case, root in zip(cases, roots, strict=True):
        members.setdefault(root, []).append(case)
    alone = {inside[0].id for inside in members.values() if len(inside) == 1 and not inside[0].group}
    taken = set(alone)
    names: dict[int, str] = {}
    for root, inside in sorted(members.items(), key=lambda item: _name(item[1])):
        names[root] = "" if inside[0].id in alone else _unused(_name(inside), taken)
        taken.add(names[root])
    return [names[root] for root in roots]


def _name(inside: Sequence[Case]) -> str:
    """The smallest name given to the cases of a group, else the smallest id."""
    return min((case.group for case in inside if case.group), default=min(case.id for case in inside))


def _unused(name: str, taken: set[str]) -> str:
    """The name, with a number behind it if another group or a case of its own has it."""
    number, unused = 1, name
    while unused in taken:
        number += 1
        unused = f"{name}-{number}"
    return unused


def _joined(keys: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """For each item the smallest index of the items that share a key with it, directly or through others."""
    parents = list(range(len(keys)))

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[Hashable, int] = {}
    for index, own in enumerate(keys):
        for key in own:
            small, large = sorted((find(first.setdefault(key, index)), find(index)))
            parents[large] = small
    return [find(index) for index in range(len(keys))]


def crossing_groups(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """Groups that have cases in more than one split: how many in each."""
    counts: dict[str, dict[str, int]] = {}
    for case in cases:
        splits = counts.setdefault(case.group or case.id, {})
        splits[case.split] = splits.get(case.split, 0) + 1
    return {group: splits for group, splits in counts.items() if len(splits) > 1}
