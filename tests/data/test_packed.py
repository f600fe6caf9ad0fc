import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Box, Case
from cogalign.data.packed import PackedCases

texts = st.text(max_size=20)
cases = st.builds(
    Case,
    id=st.text(min_size=1, max_size=8),
    file_name=st.text(min_size=1, max_size=8),
    findings=st.lists(texts, min_size=1, max_size=3).map(tuple),
    split=st.text(min_size=1, max_size=5),
    question=texts,
    answer=texts,
    boxes=st.lists(st.builds(Box, texts, *[st.integers(0, 99)] * 4), max_size=2).map(tuple),
    keywords=st.dictionaries(texts, st.lists(texts, max_size=3), max_size=2),
    attributes=st.dictionaries(texts, st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | texts, st.lists, max_leaves=4)),
    counterfactual_of=st.none() | texts,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(cases, max_size=5))
def test_it_gives_the_same_cases_as_the_list(found: list[Case]) -> None:
    packed = PackedCases(found)
    assert len(packed) == len(found) and list(packed) == found
    assert [packed[i] for i in range(-len(found), 0)] == found
    assert list(packed[1:]) == found[1:] and list(packed[::-1]) == found[::-1]


def test_a_place_that_is_not_there_is_an_error() -> None:
    packed = PackedCases([Case("a", "a.png", ("polyp",), "train")])
    for place in (1, -2):
        with pytest.raises(IndexError, match=f"case {place} of 1"):
            packed[place]


def test_its_number_of_objects_does_not_grow_with_the_cases() -> None:
    def objects(count: int) -> int:
        packed = PackedCases([Case(str(number), "a.png", ("polyp",), "train") for number in range(count)])
        gc.collect()
        return len(gc.get_objects()) if len(packed) == count else -1

    assert abs(objects(2000) - objects(10)) < 100
