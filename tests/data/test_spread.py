from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.spread import spread_evenly


def test_items_lie_in_the_middle_of_equal_shares() -> None:
    assert spread_evenly(range(10), 3) == [1, 5, 8]
    assert spread_evenly("abc", 1) == ["b"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 60)))
def test_distinct_items_come_in_order_and_as_many_as_asked(n: int, limit: int | None) -> None:
    taken = spread_evenly(range(n), limit)
    assert len(taken) == (n if limit is None else min(n, limit))
    assert taken == sorted(set(taken))
