"""Which cases make which batch: a pure function of seed, epoch and lengths, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

WINDOW = 32
"""Steps whose items are sorted by length together: long enough for tight batches, short enough to stay random."""


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
    """Batches of indices for `total` batches, epoch after epoch, shuffled by (seed, epoch).

    The endless shuffled sequence is cut into optimizer steps of `batch_size * world_size * passes` items. In a step,
    pass p of rank r holds the `(p * world_size + r)`-th part. So the order depends on nothing but the arguments,
    `start` skips without reading, and the items of a step depend on their number only: ranks, passes and batch size
    may change if their product does not.

    With `lengths` the steps that lie in one epoch are cut into windows of `WINDOW`, and a window's items are
    grouped by length: a batch has little padding, and so have its neighbours on the other ranks. A step on the
    border of two epochs stays as it was drawn, so every item comes once an epoch as without grouping.

    Args:
        size: items of the data set.
        batch_size: items of a batch.
        total: batches of this rank over the whole training.
        seed: of the order.
        start: items that all ranks together have had before.
        rank: this process.
        world_size: processes.
        lengths: length of every item, to group by; None does not group.
        passes: batches that a rank takes for an optimizer step.
        done: batches of this rank that are done already; by default those that `start` stands for.

    Where a step had another number of items before, `start` and `done` differ: the sequence goes on at item `start`,
    and `total - done` batches are left. (With `lengths`, items of the window that was cut may then come twice or not
    at all in that epoch.)
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
        passes: int = 1,
        done: int | None = None,
    ) -> None:
        self.size, self.batch_size, self.total, self.seed = size, batch_size, total, seed
        self.rank, self.world_size, self.passes = rank, world_size, passes
        self.wide = batch_size * world_size * passes
        self.start, self.origin = start // self.wide * passes, start % self.wide
        self.left = total - (self.start if done is None else done)
        self.lengths = None if lengths is None else np.asarray(lengths)
        if self.lengths is not None and len(self.lengths) != size:
            raise ValueError(f"lengths: found {len(self.lengths)}, wanted one for each of the {size} items")
        self._window: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches of the whole training (also when some are skipped, as Lightning counts them)."""
        return self.total

    def place(self, index: int) -> int:
        """Place of the first item of batch `index` of this rank in the endless sequence."""
        step, part = divmod(index, self.passes)
        return self.origin + step * self.wide + (part * self.world_size + self.rank) * self.batch_size

    def batch(self, index: int) -> list[int]:
        """The items of batch `index` of this rank."""
        if self.lengths is None:
            return self._drawn(self.place(index), self.batch_size).tolist()
        first = (self.place(index) - self.origin) % self.wide
        return self.step(index // self.passes)[first : first + self.batch_size].tolist()

    def step(self, index: int) -> np.ndarray:
        """The items of optimizer step `index` over all ranks and passes, [batch_size * world_size * passes]."""
        place, wide = self.origin + index * self.wide, self.wide
        epoch, last = place // self.size, (place + wide - 1) // self.size
        if self.lengths is None or epoch != last:
            return self._drawn(place, wide)
        first = -(-(epoch * self.size - self.origin) // wide)  # the first step that lies in this epoch altogether
        start = index - (index - first) % WINDOW
        if self._window is None or self._window[0] != start:
            stop = min(start + WINDOW, ((epoch + 1) * self.size - self.origin) // wide)
            items = self._drawn(self.origin + start * wide, (stop - start) * wide)
            rng = np.random.default_rng([self.seed, epoch, start])
            self._window = start, grouped_by_length(items, self.lengths, wide, rng)
        place = (index - start) * wide
        return self._window[1][place : place + wide]

    def _drawn(self, first: int, count: int) -> np.ndarray:
        """`count` items of the endless shuffled sequence from `first` on."""
        places = np.arange(first, first + count)
        epochs = range(first // self.size, (first + count - 1) // self.size + 1)
        parts = [_permutation(self.seed, e, self.size)[places[places // self.size == e] % self.size] for e in epochs]
        return np.concatenate(parts)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches that are left."""
        for index in range(self.start, self.start + self.left):
            yield self.batch(index)
