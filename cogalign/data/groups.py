"""Groups that hold together what must not be torn apart: patients, videos and repeated photographs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from cogalign.data.case import Case


def joined_groups(
    cases: Sequence[Case], photographs: Sequence[Hashable], sets: Sequence[int] | None = None
) -> list[str]:
    """The group of each case once given groups and repeated photographs are joined.

    Two cases belong together when they show the same photograph, or when they have the same group and are of one case
    set or of one data set; chains count. A group is named by the smallest of the names given to its cases, else by the
    smallest id. A case that stays alone without a name gets none. Groups of the same name in two case sets of different
    data sets are two groups, and get two names.

    Args:
        cases: ids must be unique.
        photographs: a label for each case, equal for cases that show the same photograph.
        sets: the number of the case set that each case comes from; by default all are of one.
    """
    keys: list[tuple[Hashable, ...]] = []
    for case, label, number in zip(cases, photographs, sets or [0] * len(cases), strict=True):
        given = (("set", number, case.group), ("data set", case.dataset, case.group)) if case.group else ()
        keys.append((("photograph", label), *given))
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
