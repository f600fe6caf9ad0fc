"""Splits by group: near-duplicates, patients and videos stay together, every finding gets its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cogalign.data.case import Case
from cogalign.data.images import Fingerprint

MAX_BITS = 6
"""Photographs are compared when their 64 bits differ in at most so many places."""
MAX_DIFFERENCE = 6.0
"""Compared photographs are one when their thumbnails differ by at most so many of 255 grey levels on average."""
_BANDS = 8


def near_duplicates(fingerprints: Sequence[Fingerprint]) -> list[int]:
    """For each image the index of the first image that shows the same photograph (its own, if there is none).

    Two images are one photograph when their pixels are equal, or when both the perceptual hash and the grey
    thumbnail agree (another size, another JPEG quality). Chains count: a = b and b = c puts a, b, c together.
    The 64 bits are cut into eight bands: hashes that differ in at most seven bits share a band, so only images
    with a common band are compared.
    """
    parents = list(range(len(fingerprints)))

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    exact: dict[str, int] = {}
    bands: dict[tuple[int, int], list[int]] = {}
    for index, current in enumerate(fingerprints):
        if current.digest in exact:
            parents[index] = find(exact[current.digest])
            continue
        exact[current.digest] = index
        keys = [(band, (current.bits >> (8 * band)) & 0xFF) for band in range(_BANDS)]
        for other in sorted({other for key in keys for other in bands.get(key, ())}):
            first, second = sorted((find(other), find(index)))
            if first != second and _alike(current, fingerprints[other]):
                parents[second] = first
        for key in keys:
            bands.setdefault(key, []).append(index)
    return [find(index) for index in range(len(fingerprints))]


def _alike(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two fingerprints are of one photograph."""
    if (one.bits ^ other.bits).bit_count() > MAX_BITS:
        return False
    return float(np.abs(one.thumbnail - other.thumbnail).mean()) <= MAX_DIFFERENCE


def group_of(case: Case) -> str:
    """The group of a case; a case without one is its own group."""
    return case.group or case.id


def assign_splits(cases: Sequence[Case], test_share: float, seed: int) -> list[Case]:
    """The cases with their `split` set to `train`, `validation` or `test`.

    `test_share` of the groups go to `test` and half as large a share of the rest to `validation`. The groups
    are put in order of their findings and data sets, at random within the same ones, and drawn at even
    distances (systematic sampling), so that each finding has its share in each split to within one group.

    Raises:
        ValueError: `test_share` is not in [0, 1).
    """
    if not 0 <= test_share < 1:
        raise ValueError(f"data.test_share: found {test_share!r}, wanted a share in [0, 1)")
    strata: dict[str, tuple[set[str], set[str]]] = {}
    for case in cases:
        findings, data_sets = strata.setdefault(group_of(case), (set(), set()))
        findings.update(case.findings)
        data_sets.add(case.dataset)
    generator = np.random.default_rng(seed)
    names = sorted(strata)
    order = dict(zip(names, generator.permutation(len(names)).tolist(), strict=True))
    names.sort(key=lambda name: (*map(sorted, strata[name]), order[name]))
    test = _drawn(names, test_share, float(generator.random()))
    rest = [name for name in names if name not in test]
    validation = _drawn(rest, test_share / 2, float(generator.random()))
    split = {name: "test" if name in test else "validation" if name in validation else "train" for name in names}
    return [replace(case, split=split[group_of(case)]) for case in cases]


def _drawn(names: Sequence[str], share: float, start: float) -> set[str]:
    """Every (1 / share)-th name, from a random start in [0, 1)."""
    steps = np.floor(np.arange(len(names) + 1) * share + start)
    return {name for name, before, after in zip(names, steps, steps[1:], strict=False) if after > before}
