"""Mixed samples: exact shares at every place, each part once an epoch, and the same steps however they are cut."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.mixed import MixedSampler, Mixture, part_sequence
from cogalign.data.sampler import WINDOW

MIXTURE = Mixture(sizes=(11, 4, 7), shares=(2.0, 1.0, 0.5))


def lengths_of(grouped: bool) -> list[int] | None:
    return [(7 * item) % 13 for item in range(sum(MIXTURE.sizes))] if grouped else None


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(0.01, 20), min_size=1, max_size=4),
    count=st.integers(0, 300),
    longer=st.integers(0, 300),
)
def test_every_part_has_its_share_at_every_place(shares: list[float], count: int, longer: int) -> None:
    parts, numbers = part_sequence(shares, count)
    assert len(parts) == count
    for part, share in enumerate(shares):
        mine = parts == part
        assert numbers[mine].tolist() == list(range(mine.sum()))
        due = share / sum(shares) * np.arange(1, count + 1)
        assert np.abs(np.cumsum(mine) - due).max(initial=0) < len(shares)
    more = part_sequence(shares, count + longer)
    assert all(np.array_equal(a, b[:count]) for a, b in zip((parts, numbers), more, strict=True))


def test_whole_shares_are_exact_in_each_period() -> None:
    parts, _ = part_sequence((2.0, 1.0, 0.5), 700)
    assert all(Counter(parts[i : i + 7].tolist()) == {0: 4, 1: 2, 2: 1} for i in range(0, 700, 7))


@pytest.mark.parametrize("grouped", [False, True])
def test_each_part_goes_through_all_its_items_before_one_comes_again(grouped: bool) -> None:
    total = 4 * WINDOW
    items = np.concatenate(list(MixedSampler(MIXTURE, 7, total, 3, 0, 0, 1, lengths_of(grouped))))
    assert np.bincount(np.digitize(items, [11, 15]), minlength=3).tolist() == [4 * total, 2 * total, total]
    window = 7 * WINDOW if grouped else 1  # inside a window of steps the order is by length
    for first, last in ((0, 11), (11, 15), (15, 22)):
        mine = np.nonzero((items >= first) & (items < last))[0]
        counts = Counter(items[mine[mine < len(items) // window * window]].tolist())
        assert len(counts) == last - first and max(counts.values()) - min(counts.values()) <= 1
    if not grouped:
        own = items[(items >= 11) & (items < 15)].reshape(-1, 4)
        assert all(sorted(epoch) == [11, 12, 13, 14] for epoch in own.tolist())
        assert len({tuple(epoch) for epoch in own.tolist()}) > 5


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 80), world=st.integers(1, 3), seed=st.integers(0, 99), grouped=st.booleans())
def test_a_resumed_sampler_gives_the_rest_of_the_batches(start: int, world: int, seed: int, grouped: bool) -> None:
    for rank in range(world):
        order = (seed, 0, rank, world, lengths_of(grouped))
        whole = list(MixedSampler(MIXTURE, 3, 80, *order))
        rest = MixedSampler(MIXTURE, 3, 80, seed, start * 3 * world, rank, world, lengths_of(grouped))
        assert list(rest) == whole[start:] and len(rest) == 80


@pytest.mark.parametrize("grouped", [False, True])
def test_the_items_of_a_step_do_not_depend_on_ranks_and_passes(grouped: bool) -> None:
    def steps(batch_size: int, world: int, passes: int) -> list[list[int]]:
        samplers = [
            MixedSampler(MIXTURE, batch_size, 40 * passes, 5, 0, rank, world, lengths_of(grouped), passes)
            for rank in range(world)
        ]
        return [
            [item for part in range(passes) for one in samplers for item in one.batch(step * passes + part)]
            for step in range(40)
        ]

    wanted = steps(12, 1, 1)
    assert steps(3, 2, 2) == steps(4, 3, 1) == steps(2, 1, 6) == wanted


def test_another_seed_has_another_order_of_the_same_parts() -> None:
    a, b = (np.concatenate(list(MixedSampler(MIXTURE, 7, 20, seed))) for seed in (1, 2))
    assert not np.array_equal(a, b) and np.array_equal(np.digitize(a, [11, 15]), np.digitize(b, [11, 15]))
