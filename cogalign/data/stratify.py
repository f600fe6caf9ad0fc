"""Which group goes to which split, so that every label has its share of cases in each.

Groups are indivisible and differ in size: a video of a thousand frames beside single photographs. The first draw is
the iterative stratification of Sechidis, Tsoumakas and Vlahavas (ECML PKDD 2011, algorithm 1) with groups in the place
of examples: the label with the fewest cases left is dealt out first, of it the largest groups, each to the split that
lacks most. Then single groups move as long as that brings the counts nearer to the wanted ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

PASSES = 50
"""Most rounds of single moves; a few are enough, the bound guards against an endless loop by rounding."""
_LEAST = 1e-9  # gains below this are rounding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class _Balance:
    """How many cases of each label the splits have and should have, and what moving a group would gain.

    What is made small is the sum over splits and labels of weight * (have - wanted)^2 / total, in cases.
    """

    def __init__(self, counts: csr_matrix, shares: Floats, weights: Floats) -> None:
        self.counts = counts
        totals = np.asarray(counts.sum(axis=0)).ravel()
        self.wanted = shares[:, None] * totals[None, :]
        self.have = np.zeros_like(self.wanted)
        self.weights = weights / np.maximum(totals, 1)
        self.home: Ints = np.full(counts.shape[0], -1, dtype=np.int64)
        self.shut = shares <= 0
        self._squares: Floats = counts.power(2) @ self.weights

    def row(self, group: int) -> tuple[Ints, Floats]:
        """Labels of a group, and its cases of each."""
        part = slice(self.counts.indptr[group], self.counts.indptr[group + 1])
        return self.counts.indices[part], self.counts.data[part]

    def place(self, group: int, split: int) -> None:
        """Put a group into a split, out of the one that it is in."""
        labels, amounts = self.row(group)
        if self.home[group] >= 0:
            self.have[self.home[group], labels] -= amounts
        self.have[split, labels] += amounts
        self.home[group] = split

    def pull(self, group: int) -> Floats:
        """How much nearer the counts come if the group goes to each split, less the same number for all (splits)."""
        labels, amounts = self.row(group)
        gap = self.wanted[:, labels] - self.have[:, labels]
        found: Floats = 2 * (gap * amounts) @ self.weights[labels]
        return found

    def gains(self, group: int) -> Floats:
        """How much nearer the counts come if a group moves to each split (splits); 0 for its own."""
        return self._moved(self.pull(group)[None], np.array([group]))[0]

    def all_gains(self) -> Floats:
        """`gains` of every group (groups, splits)."""
        return self._moved(2 * (self.counts @ ((self.wanted - self.have) * self.weights).T), np.arange(len(self.home)))

    def _moved(self, pull: Floats, groups: Ints) -> Floats:
        home = self.home[groups, None]
        found: Floats = pull - np.take_along_axis(pull, home, axis=1) - 2 * self._squares[groups, None]
        found[:, self.shut] = -np.inf
        np.put_along_axis(found, home, 0.0, axis=1)
        return found

    def is_last(self, group: int, kept: NDArray[np.bool_]) -> bool:
        """Whether a group is the only one of its split with one of its labels that the split must keep."""
        labels, amounts = self.row(group)
        split = int(self.home[group])
        return bool((kept[split, labels] & (self.have[split, labels] - amounts < 0.5)).any())


def stratified(
    counts: csr_matrix, shares: Floats, weights: Floats, needed: NDArray[np.bool_], generator: np.random.Generator
) -> Ints:
    """The split of each group, int64 (groups), so that each split has its share of the cases of each label.

    Args:
        counts: cases of each label in each group (groups, labels).
        shares: share of the cases that each split should get, float64 (splits); the sum is 1. A split with the share
            0 stays empty.
        weights: what a label counts, float64 (labels).
        needed: bool (splits, labels): labels that a split must have, even above its share. The first split gets them
            in any case; the others where that takes no needed label from another split.
        generator: decides between equal choices.
    """
    balance = _Balance(csr_matrix(counts, dtype=np.float64), shares, weights)
    if balance.counts.shape[0] == 0:
        return balance.home
    needed = needed & ~balance.shut[:, None]
    _deal(balance, generator)
    _move(balance, np.zeros_like(needed), generator)
    _cover(balance, needed)
    _move(balance, needed, generator)
    return balance.home


def _deal(balance: _Balance, generator: np.random.Generator) -> None:
    """Give every group a split: of the label with the fewest cases left, the group with most of them first."""
    columns = balance.counts.tocsc()
    left = np.asarray(balance.counts.sum(axis=0)).ravel()
    chance = generator.random(balance.counts.shape[0])
    while (balance.home < 0).any():
        label = int(np.argmin(np.where(left > 0, left, np.inf)))
        part = slice(columns.indptr[label], columns.indptr[label + 1])
        groups, amounts = columns.indices[part], columns.data[part]
        free = balance.home[groups] < 0
        groups, amounts = groups[free], amounts[free]
        for group in groups[np.lexsort((chance[groups], -amounts))].tolist():
            balance.place(group, _neediest(balance, group, label, generator))
            labels, own = balance.row(group)
            left[labels] -= own
        left[label] = 0


def _neediest(balance: _Balance, group: int, label: int, generator: np.random.Generator) -> int:
    """The split that lacks most of a label, of equal ones that which gains most, of these any."""
    lack = np.where(balance.shut, -np.inf, balance.wanted[:, label] - balance.have[:, label])
    best = np.flatnonzero(lack >= lack.max() - _LEAST)
    if len(best) > 1:
        pull = balance.pull(group)[best]
        best = best[pull >= pull.max() - _LEAST]
    return int(best[generator.integers(len(best))]) if len(best) > 1 else int(best[0])


def _move(balance: _Balance, kept: NDArray[np.bool_], generator: np.random.Generator) -> None:
    """Move single groups as long as the counts come nearer to the wanted ones, and no split loses what it must keep."""
    for _ in range(PASSES):
        best = balance.all_gains().max(axis=1)
        groups = np.flatnonzero(best > _LEAST)
        moved = False
        for group in groups[np.lexsort((generator.random(len(groups)), -best[groups]))].tolist():
            gains = balance.gains(group)
            if gains.max() > _LEAST and not balance.is_last(group, kept):
                balance.place(group, int(gains.argmax()))
                moved = True
        if not moved:
            return


def _cover(balance: _Balance, needed: NDArray[np.bool_]) -> None:
    """Give each split the labels that it needs and has not, the rarest first, by the moves that cost least."""
    columns = balance.counts.tocsc()
    totals = np.asarray(balance.counts.sum(axis=0)).ravel()
    kept = np.zeros_like(needed)
    for split, wanted in enumerate(needed):
        kept[: split + 1] = needed[: split + 1]
        for label in np.lexsort((np.arange(len(totals)), totals)).tolist():
            if not wanted[label] or balance.have[split, label] > 0.5:
                continue
            groups = columns.indices[columns.indptr[label] : columns.indptr[label + 1]].tolist()
            free = [group for group in groups if not balance.is_last(group, kept)]
            if free:
                balance.place(max(free, key=lambda group: balance.gains(group)[split]), split)
