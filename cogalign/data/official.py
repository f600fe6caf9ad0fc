"""The splits that data sets come with: `cogalign data split DIR --method official`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from cogalign.data.case import Case
from cogalign.data.splits import LEFT_OUT, assign_splits, group_of

Rest = Literal["train", "leave_out", "stratify"]
_ORDER = ("train", "validation", "test")


def official_splits(
    cases: Sequence[Case],
    *,
    fold: int | None = None,
    rest: Rest = "train",
    repair: bool = False,
    test_share: float = 0.2,
    validation_share: float | None = None,
    seed: int = 3,
) -> tuple[list[Case], list[str]]:
    """The cases with the `split` that their data set gives them, and what there is to say about it.

    `attributes["official_split"]` is taken as it is, be it a name of the set's own. Where an official group crosses
    splits, nothing is changed unless `repair` is set.

    Args:
        cases: from any number of data sets.
        fold: of data sets with folds (`attributes["official_fold"]`) this one is `test`, the others are `train`.
        rest: where cases without an official split go: to `train`, to no split (`left_out`), or drawn by label and
            group. One whose group has cases in an official split other than `train` is left out in any case, lest it leak.
        repair: move the smaller side of a group that crosses splits to the larger; with equal sides to `train`.
        test_share: with `rest="stratify"`, share of the cases without an official split; see `assign_splits`.
        validation_share: likewise.
        seed: likewise.

    Raises:
        ValueError: a data set has folds, but not this one; `rest` is unknown; or the shares are bad.
    """
    if rest not in get_args(Rest):
        raise ValueError(f"rest: found {rest!r}, wanted one of {', '.join(get_args(Rest))}")
    known = {case.id: name for case in cases if (name := _official(case, fold))}
    if fold is not None:
        _require_fold(cases, fold)
    notes = _about_missing(cases, known, fold, rest)
    homes: dict[str, Counter[str]] = {}
    for case in cases:
        if case.id in known:
            homes.setdefault(group_of(case), Counter())[known[case.id]] += 1
    crossing = [group for group, home in homes.items() if len(home) > 1]
    if crossing:
        moved = _repair(cases, known, homes) if repair else 0
        told = f"{moved} cases moved to the larger side" if repair else "left as they are; see the leak report"
        notes.append(f"{len(crossing)} groups cross the official splits: {told}")
    drawn, out = _rest(cases, known, homes, rest, test_share, validation_share, seed)
    if out:
        notes.append(f"{out} cases without an official split are left out: their group is in another split than train")
    known.update(drawn)
    return [replace(case, split=known[case.id]) for case in cases], notes


def wanted_official(
    cases: Sequence[Case], fold: int | None, shares: Mapping[str, float], rest: Rest
) -> dict[str, float]:
    """Splits that must not be empty, and which share of the used cases each should have (1: any number will do).

    Args:
        cases: with their official splits.
        fold: see `official_splits`.
        shares: what is wanted where no case has an official split, and all are drawn.
        rest: see `official_splits`.
    """
    counts = Counter(name for case in cases if (name := _official(case, fold)))
    if not counts and rest == "stratify":
        return {"train": 1.0, **shares}
    return {"train": 1.0} | dict.fromkeys(counts or ("test",), 1.0)


def _official(case: Case, fold: int | None) -> str:
    """The official split of a case, or nothing."""
    own = case.attributes.get("official_fold")
    if fold is not None and isinstance(own, int):
        return "test" if own == fold else "train"
    name = case.attributes.get("official_split")
    return name if isinstance(name, str) else ""


def _require_fold(cases: Sequence[Case], fold: int) -> None:
    """Raise unless every data set with folds has this one, and there is such a set."""
    folds: dict[str, set[int]] = {}
    for case in cases:
        own = case.attributes.get("official_fold")
        if isinstance(own, int):
            folds.setdefault(case.dataset, set()).add(own)
    if not folds:
        raise ValueError(f"fold: found {fold}, but no case has attributes.official_fold")
    for name, own_folds in sorted(folds.items()):
        if fold not in own_folds:
            raise ValueError(f"fold: found {fold}, but {name} has the folds {', '.join(map(str, sorted(own_folds)))}")


def _about_missing(cases: Sequence[Case], known: dict[str, str], fold: int | None, rest: Rest) -> list[str]:
    """How many cases of which data sets and classes have no official split."""
    missing = [case for case in cases if case.id not in known]
    where = {"train": "go to train", "leave_out": "are left out", "stratify": "are drawn by label and group"}[rest]
    notes = []
    for name, number in sorted(Counter(case.dataset for case in missing).items()):
        of = sum(case.dataset == name for case in cases)
        classes = Counter(str(case.attributes.get("class", "")) for case in missing if case.dataset == name)
        which = ", ".join(f"{label} {n}" for label, n in sorted(classes.items())) if number < of else "the whole set"
        notes.append(f"{name or 'cases of no data set'}: {number} of {of} have no official split and {where} ({which})")
    if fold is None and any(isinstance(case.attributes.get("official_fold"), int) for case in missing):
        notes.append("some of them have official folds: name the fold that is to be test")
    return notes


def _repair(cases: Sequence[Case], known: dict[str, str], homes: dict[str, Counter[str]]) -> int:
    """Put groups that cross official splits where most of their cases are; how many cases moved."""
    moved = 0
    for case in cases:
        home = homes.get(group_of(case), Counter[str]())
        if case.id in known and len(home) > 1:
            best = min(home, key=lambda name: (-home[name], _ORDER.index(name) if name in _ORDER else 9, name))
            moved += known[case.id] != best
            known[case.id] = best
    for home in homes.values():
        if len(home) > 1:
            best = min(home, key=lambda name: (-home[name], _ORDER.index(name) if name in _ORDER else 9, name))
            total = home.total()
            home.clear()
            home[best] = total
    return moved


def _rest(
    cases: Sequence[Case],
    known: dict[str, str],
    homes: dict[str, Counter[str]],
    rest: Rest,
    test_share: float,
    validation_share: float | None,
    seed: int,
) -> tuple[dict[str, str], int]:
    """The splits of the cases without an official one, and how many are left out because of their group."""
    found: dict[str, str] = {}
    free: list[Case] = []
    for case in cases:
        if case.id in known:
            continue
        home = homes.get(group_of(case))
        if rest == "leave_out" or (home and set(home) != {"train"}):
            found[case.id] = LEFT_OUT
        elif home or rest == "train":
            found[case.id] = "train"
        else:
            free.append(case)
    out = 0 if rest == "leave_out" else sum(split == LEFT_OUT for split in found.values())
    found.update((case.id, case.split) for case in assign_splits(free, test_share, seed, validation_share))
    return found, out
