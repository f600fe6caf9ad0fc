import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.sampler import WINDOW, StepSampler


def lengths_of(size: int, grouped: bool) -> list[int] | None:
    return [(7 * item) % 13 for item in range(size)] if grouped else None


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    total=st.integers(1, 12),
    world=st.integers(1, 3),
    seed=st.integers(0, 99),
    grouped=st.booleans(),
    data=st.data(),
)
def test_a_resumed_sampler_gives_the_rest_of_the_batches(
    size: int, batch_size: int, total: int, world: int, seed: int, grouped: bool, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, total))
    for rank in range(world):
        lengths = lengths_of(size, grouped)
        whole = list(StepSampler(size, batch_size, total, seed, 0, rank, world, lengths))
        rest = StepSampler(size, batch_size, total, seed, start * batch_size * world, rank, world, lengths)
        assert list(rest) == whole[start:] and len(rest) == total
        assert all(len(batch) == batch_size for batch in whole)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 60),
    world=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 99),
    grouped=st.booleans(),
)
def test_every_case_comes_once_an_epoch_over_all_ranks(
    size: int, world: int, batch_size: int, seed: int, grouped: bool
) -> None:
    total = 3 * size  # at least three epochs of batches
    lengths = lengths_of(size, grouped)
    samplers = [StepSampler(size, batch_size, total, seed, 0, rank, world, lengths) for rank in range(world)]
    order = [item for index in range(total) for sampler in samplers for item in sampler.batch(index)]
    for epoch in range(3):
        assert Counter(order[epoch * size : (epoch + 1) * size]) == Counter(range(size))


def test_another_seed_and_another_epoch_have_another_order() -> None:
    a, b = (list(StepSampler(50, 50, 2, seed)) for seed in (1, 2))
    assert a[0] != a[1] and a[0] != b[0] and a[0] != sorted(a[0])
    assert a == list(StepSampler(50, 50, 2, 1))


def test_batches_of_all_ranks_hold_like_lengths_and_come_in_no_order_of_length() -> None:
    size, batch, world = 4 * WINDOW * 8 * 2, 8, 2
    lengths = [(37 * item) % 101 for item in range(size)]
    samplers = [StepSampler(size, batch, size // 16, 5, 0, rank, world, lengths) for rank in range(world)]
    together = [samplers[0].batch(index) + samplers[1].batch(index) for index in range(size // 16)]
    spreads = [max(lengths[i] for i in items) - min(lengths[i] for i in items) for items in together]
    assert max(spreads) <= 12  # of 100; a window has 512 items
    means = [sum(lengths[i] for i in items) / len(items) for items in together]
    rises = sum(a < b for a, b in itertools.pairwise(means))
    assert 0.3 * len(means) < rises < 0.7 * len(means)


def test_the_batches_of_the_next_epoch_are_others() -> None:
    lengths = [item % 10 for item in range(64)]
    sampler = StepSampler(64, 8, 16, 3, lengths=lengths)
    batches = [frozenset(batch) for batch in sampler]
    assert not set(batches[:8]) & set(batches[8:])


def test_a_length_for_each_item_is_wanted() -> None:
    with pytest.raises(ValueError, match="lengths: found 2, wanted one for each of the 3 items"):
        StepSampler(3, 1, 1, 0, lengths=[1, 2])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 90),
    factors=st.permutations([2, 3, 2]),
    seed=st.integers(0, 99),
    grouped=st.booleans(),
    start=st.integers(0, 3),
)
def test_the_items_of_a_step_do_not_depend_on_ranks_passes_and_batch_size(
    size: int, factors: list[int], seed: int, grouped: bool, start: int
) -> None:
    batch_size, world, passes = factors
    lengths, steps = lengths_of(size, grouped), 8
    alone = list(StepSampler(size, 12, steps, seed, 12 * start, lengths=lengths))
    ranks = [
        list(StepSampler(size, batch_size, steps * passes, seed, 12 * start, rank, world, lengths, passes))
        for rank in range(world)
    ]
    assert all(len(batches) == (steps - start) * passes for batches in ranks)
    for step, items in enumerate(alone):
        shared = [ranks[rank][step * passes + part] for part in range(passes) for rank in range(world)]
        assert [item for batch in shared for item in batch] == items


def test_a_step_of_another_size_goes_on_at_the_next_item() -> None:
    sequence = [item for batch in StepSampler(50, 1, 200, 3) for item in batch]
    # six steps of 5 items are done; four are left, of 8 items now
    later = StepSampler(50, 4, 10, 3, start=30, world_size=2, done=6)
    other = StepSampler(50, 4, 10, 3, start=30, rank=1, world_size=2, done=6)
    found = [item for mine, yours in zip(later, other, strict=True) for item in mine + yours]
    assert found == sequence[30:62] and len(later) == 10
