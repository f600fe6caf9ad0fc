"""Splits by group: near-duplicates, patients and videos stay together, every finding gets its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set, write_metadata
from cogalign.data.fingerprints import fingerprints_of
from cogalign.data.groups import photographs, with_joined_groups
from cogalign.data.held import in_order, place_held
from cogalign.data.stratify import stratified

if TYPE_CHECKING:
    from cogalign.data.official import Rest
    from cogalign.data.split_summary import SplitSummary

LEFT_OUT = "left_out"
"""The split of cases that a protocol or an official split does not use."""


def group_of(case: Case) -> str:
    """The group of a case; a case without one is its own group."""
    return case.group or case.id


def assign_splits(
    cases: Sequence[Case], test_share: float, seed: int, validation_share: float | None = None
) -> list[Case]:
    """The cases with their `split` set to `train`, `validation` or `test`; the order of the cases makes no difference.

    Shares count cases, groups stay whole. Stratified are the findings, their combinations, the data sets, each finding
    within each data set and each class of a data set: see `stratified`. Every finding and every combination of several
    groups is in `train`; where they have two groups, they are in `test` too if that takes nothing from `train`.

    Args:
        cases: each with its findings, data set, group and, if known, `attributes["class"]`.
        test_share: share of all cases that go to `test`.
        seed: the same seed draws the same split.
        validation_share: share of all cases that go to `validation`; None: half of `test_share` of the rest.

    Raises:
        ValueError: the shares are not in [0, 1), or their sum is not.
    """
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share: found {test_share!r}, wanted a share in [0, 1)")
    if validation_share is None:
        validation_share = test_share / 2 * (1 - test_share)
    if not 0 <= validation_share < 1 - test_share:
        raise ValueError(f"validation_share: found {validation_share!r}, wanted a share in [0, {1 - test_share:g})")
    names, labels, counts = _label_table(cases)
    shares = np.array([1 - test_share - validation_share, test_share, validation_share])
    several = np.asarray((counts > 0).sum(axis=0)).ravel() > 1
    finding = np.array([kind == "finding" for kind, *_ in labels], dtype=bool)
    combined = np.array([kind == "combination" for kind, *_ in labels], dtype=bool)
    needed = np.stack((finding | (combined & several), (finding | combined) & several, np.zeros_like(several)))
    weights = np.array([_WEIGHTS[kind] for kind, *_ in labels])
    found = stratified(counts, shares, weights, needed, np.random.default_rng(seed))
    home = {name: ("train", "test", "validation")[split] for name, split in zip(names, found.tolist(), strict=True)}
    return [replace(case, split=home[group_of(case)]) for case in cases]


_WEIGHTS = {"all": 1.0, "finding": 1.0, "source": 0.5, "finding of source": 0.5, "combination": 0.5, "class": 0.25}
"""What the labels of each kind count."""


def _label_table(cases: Sequence[Case]) -> tuple[list[str], list[tuple[str, ...]], csr_matrix]:
    """Groups and labels in order, and how many cases of each label a group has (groups, labels)."""
    rows: dict[str, Counter[tuple[str, ...]]] = {}
    for case in cases:
        rows.setdefault(group_of(case), Counter()).update(_labels(case))
    names = sorted(rows)
    labels = sorted({label for row in rows.values() for label in row})
    number = {label: index for index, label in enumerate(labels)}
    entries = [(group, number[label], n) for group, name in enumerate(names) for label, n in sorted(rows[name].items())]
    table = np.array(entries, dtype=np.int64).reshape(-1, 3)
    counts = csr_matrix((table[:, 2], (table[:, 0], table[:, 1])), shape=(len(names), len(labels)))
    return names, labels, counts


def _labels(case: Case) -> set[tuple[str, ...]]:
    """What a case counts for: kind and names."""
    findings = sorted(set(case.findings))
    labels: set[tuple[str, ...]] = {("all",), ("source", case.dataset)}
    labels |= {("finding", name) for name in findings}
    labels |= {("finding of source", name, case.dataset) for name in findings}
    if len(findings) > 1:
        labels.add(("combination", *findings))
    class_ = case.attributes.get("class")
    if isinstance(class_, str):
        labels.add(("class", case.dataset, class_))
    return labels


def split_case_set(
    root: Path,
    method: Literal["stratified", "official", "paper"] = "stratified",
    *,
    test_share: float = 0.2,
    validation_share: float | None = None,
    seed: int = 3,
    fold: int | None = None,
    rest: Rest = "train",
    grouped: bool = True,
    repair: bool = False,
    workers: int | None = None,
) -> SplitSummary:
    """Split a case set in place: only `split` in `metadata.jsonl` changes, and `group` where something joins groups.

    Near-duplicates, and the counterfactuals of one case, are joined to one group first, whatever the method;
    `attributes.given_group` keeps the group that a case came with, and every split joins anew from there. Cases with
    `attributes.held_split` stay in that split, and the method draws the others (`held.place_held`). Written beside are
    `split.json`, `split.svg`, and the leak report (`leaks.md`, `leaks.json`, `leaks.jpg`). The metadata are replaced as
    a whole or not at all; reports of an older split go before.

    Args:
        root: folder of the case set.
        method: drawn by label and group (`assign_splits`), the data sets' own (`official_splits`), or the paper's protocol
            (`paper_split`).
        test_share: stratified, and official with `rest="stratify"`: share of the cases in `test`.
        validation_share: likewise for `validation`; None: half of `test_share` of the rest. Paper: share of `train`
            that becomes `validation`; None: none, as in the paper.
        seed: of the draw.
        fold: official: this fold is `test`.
        rest: official: where cases without an official split go.
        grouped: paper: by group, not by image.
        repair: official: move the smaller side of a group that crosses splits.
        workers: processes that decode images which `fingerprints.npz` does not know; default: one a processor.

    Raises:
        FileNotFoundError: there is no case set, or an image is missing.
        ValueError: the method is unknown, a row or an image is bad, or see the functions named above.
    """
    from cogalign.data.leaks import LEAK_FILES, find_leaks, write_leak_report
    from cogalign.data.official import official_splits, wanted_official
    from cogalign.data.protocol import paper_split, read_protocol
    from cogalign.data.split_summary import SUMMARY_FILES, summarise, write_summary

    case_set = read_case_set(root)
    labels = photographs(fingerprints_of(case_set, workers))
    everything = with_joined_groups(case_set.cases, labels)
    placed, told = place_held(everything, LEFT_OUT)
    cases = [case for case in everything if case.id not in placed]
    notes: list[str] = []
    settings: dict[str, Any] = {"seed": seed, "test_share": test_share, "validation_share": validation_share}
    if method == "stratified":
        after = assign_splits(cases, test_share, seed, validation_share)
        wanted = {"train": 1.0, "test": test_share, "validation": validation_share or 0.0}
    elif method == "official":
        settings |= {"fold": fold, "rest": rest, "repair": repair}
        after, notes = official_splits(
            cases,
            fold=fold,
            rest=rest,
            repair=repair,
            test_share=test_share,
            validation_share=validation_share,
            seed=seed,
        )
        wanted = wanted_official(cases, fold, {"test": test_share, "validation": validation_share or 0.0}, rest)
    elif method == "paper":
        settings = {"seed": seed, "validation_share": validation_share, "grouped": grouped}
        protocol = read_protocol()
        after, notes = paper_split(cases, protocol, seed, grouped, validation_share or 0.0)
        wanted = {"train": 1.0, "test": protocol.test_share, "validation": validation_share or 0.0}
    else:
        raise ValueError(f"method: found {method!r}, wanted one of stratified, official, paper")
    after, out = without_crossing_backgrounds(in_order(everything, after, placed))
    notes = [*told, *notes]
    if out:
        notes.append(f"{out} transplants are left out: their background is in another split than their lesion")
    # Everything that can fail comes before the first write, and no report of an older split stays beside new metadata.
    report = find_leaks(CaseSet(case_set.root, after), workers, labels=labels)
    summary = summarise(case_set.root, method, settings, after, notes, report, wanted)
    for name in (*LEAK_FILES, *SUMMARY_FILES):
        (case_set.root / name).unlink(missing_ok=True)
    write_metadata(case_set.root, [case.to_row() for case in after])
    write_leak_report(report, case_set.root)
    write_summary(summary, case_set.root)
    return summary


def without_crossing_backgrounds(cases: Sequence[Case]) -> tuple[list[Case], int]:
    """The cases, with transplants `left_out` whose background is shown in another split, and how many these are.

    A transplant shows two photographs: its source's, which is in its group, and its background's. Where that is not
    here, the cases made of it say in which split it is; where there are none, the first transplant onto it does.
    """
    homes: dict[str, str] = {}
    for case in cases:
        if case.counterfactual_of and case.split != LEFT_OUT:
            homes.setdefault(case.counterfactual_of, case.split)
    homes |= {case.id: case.split for case in cases}
    found = []
    for case in cases:
        home = case.split
        if case.background_of and home != LEFT_OUT:
            home = homes.setdefault(case.background_of, home)
        found.append(case if home in (case.split, LEFT_OUT) else replace(case, split=LEFT_OUT))
    return found, sum(one.split != two.split for one, two in zip(cases, found, strict=True))
