"""Training samples of several parts (cases as they are, counterfactuals) in given shares, without epochs of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from cogalign.data.sampler import StepSampler

ENDLESS = 2**62
"""Items of the one epoch that `StepSampler` sees of a mixture."""


@lru_cache(maxsize=8)  # two epochs of each part: a batch may lie in both
def _permutation(seed: int, part: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, part, epoch]).permutation(size)


def part_sequence(shares: Sequence[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` places of an endless sequence in which each part has its share, spread evenly (Sainte-Laguë).

    The k-th item of a part with share s is due at (k + 1/2) / s; items come in the order in which they are due. A longer
    sequence begins with the shorter one.

    Args:
        shares: of the parts, positive; they are normalised.
        count: places.

    Returns:
        Part of each place, and how many places of that part come before it; both [count].
    """
    whole = sum(shares)
    numbers = [np.arange(int(count * share / whole) + len(shares) + 2) for share in shares]
    due = np.concatenate([(number + 0.5) / share for number, share in zip(numbers, shares, strict=True)])
    part = np.repeat(np.arange(len(shares)), [len(number) for number in numbers])
    order = np.lexsort((part, due))[:count]
    return part[order], np.concatenate(numbers)[order]


@dataclass(frozen=True)
class Mixture:
    """Parts of a data set that lie one after the other.

    Attributes:
        sizes: items of each part.
        shares: of each part among the samples, positive; they are normalised.
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]


class MixedSampler(StepSampler):
    """Batches as `StepSampler` makes them, from an endless sequence that mixes parts in exact shares.

    Each part goes through its own items epoch after epoch, shuffled by (seed, part, epoch). There are no epochs of the
    whole, so with `lengths` every window of steps is grouped.

    Args:
        mixture: the parts.
        order: what `StepSampler` takes after the number of items.
    """

    def __init__(self, mixture: Mixture, *order: Any) -> None:
        super().__init__(sum(mixture.sizes), *order)
        self.size = ENDLESS
        self.mixture = mixture
        self._sequence = part_sequence(mixture.shares, 0)

    def _drawn(self, first: int, count: int) -> np.ndarray:
        """`count` items of the endless sequence from `first` on."""
        if len(self._sequence[0]) < first + count:
            self._sequence = part_sequence(self.mixture.shares, 2 * (first + count))
        parts, numbers = (values[first : first + count] for values in self._sequence)
        items = np.empty(count, dtype=np.int64)
        starts = [0, *accumulate(self.mixture.sizes)]
        for part, size in enumerate(self.mixture.sizes):
            (places,) = np.nonzero(parts == part)
            for epoch in np.unique(numbers[places] // size):
                now = places[numbers[places] // size == epoch]
                order = _permutation(self.seed, part, int(epoch), size)
                items[now] = starts[part] + order[numbers[now] % size]
        return items
