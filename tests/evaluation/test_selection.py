from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.evaluation.selection import spread, stream


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 60)))
def test_a_limit_takes_distinct_items_in_order(n: int, limit: int | None) -> None:
    taken = spread(range(n), limit)
    assert len(taken) == (n if limit is None else min(n, limit))
    assert taken == sorted(set(taken))


def test_a_limit_spreads_over_the_whole_sequence() -> None:
    assert spread(range(100), 4) == [0, 25, 50, 75]


def test_streams_depend_on_seed_and_name_only() -> None:
    assert stream(1, "a").random() == stream(1, "a").random()
    assert len({stream(1, "a").random(), stream(1, "b").random(), stream(2, "a").random()}) == 3
