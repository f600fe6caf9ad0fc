"""Which cases make which batch: a pure function of seed, epoch and lengths, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

WINDOW = 32
"""Batches whose items are sorted by length together: long enough for tight batches, short enough to stay random."""


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def grouped_by_length(items: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    """The items of a window, so that those of like length stand in the same batch.

    Args:
        items: [k * batch] indices, shuffled; their order breaks ties.
        lengths: length of every item of the data set.
        batch: items of a batch.
        rng: shuffles the batches, so that training does not go from short to long.

    Returns:
        The same items, [k * batch].
    """
    batches = items[np.argsort(lengths[items], kind="stable")].reshape(-1, batch)
    return batches[rng.permutation(len(batches))].reshape(-1)


class StepSampler(Sampler[list[int]]):
    """Batches of indices for `total` batches in all, epoch after epoch, shuffled by (seed, epoch).

    Batch b of rank r of w holds the items `(b * w + r) * batch_size ...` of the endless shuffled
    sequence, so the order depends on nothing but the arguments, and `start` skips without reading.

    With `lengths` the batches that lie in one epoch are cut into windows of `WINDOW`, and a window's items are
    grouped by length: a batch has little padding, and so have its neighbours on the other ranks. A batch on the
    border of two epochs stays as it was drawn, so every item comes once an epoch as without grouping.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        total: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.size, self.batch_size, self.total, self.seed = size, batch_size, total, seed
        self.start, self.rank, self.world_size = start, rank, world_size
        self.lengths = None if lengths is None else np.asarray(lengths)
        if self.lengths is not None and len(self.lengths) != size:
            raise ValueError(f"lengths: found {len(self.lengths)}, wanted one for each of the {size} items")
        self._window: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches of the whole training (also when some are skipped, as Lightning counts them)."""
        return self.total

    def batch(self, index: int) -> list[int]:
        """The items of batch `index` of this rank."""
        wide = self.batch_size * self.world_size
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        epoch, last = index * wide // self.size, ((index + 1) * wide - 1) // self.size
        if self.lengths is None or epoch != last:
            return self._drawn(index * wide, wide)[mine].tolist()
        first = -(-epoch * self.size // wide)  # the first batch that lies in this epoch with all its items
        start = index - (index - first) % WINDOW
        if self._window is None or self._window[0] != start:
            stop = min(start + WINDOW, (epoch + 1) * self.size // wide)
            items = self._drawn(start * wide, (stop - start) * wide)
            rng = np.random.default_rng([self.seed, epoch, start])
            self._window = start, grouped_by_length(items, self.lengths, wide, rng)
        place = (index - start) * wide
        return self._window[1][place : place + wide][mine].tolist()

    def _drawn(self, first: int, count: int) -> np.ndarray:
        """`count` items of the endless shuffled sequence from `first` on."""
        places = np.arange(first, first + count)
        epochs = range(first // self.size, (first + count - 1) // self.size + 1)
        parts = [_permutation(self.seed, e, self.size)[places[places // self.size == e] % self.size] for e in epochs]
        return np.concatenate(parts)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from `start` on."""
        for index in range(self.start, self.total):
            yield self.batch(index)
