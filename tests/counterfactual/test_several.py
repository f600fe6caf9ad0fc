import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual.several import split_mask
from cogalign.data.case import Box


def square(top: int, left: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


POLYP, ULCER = Box("polyp", 2, 2, 10, 10), Box("ulcer", 20, 20, 30, 30)
MASK = square(2, 2, 8) | square(20, 20, 10)


def test_the_parts_are_told_apart_by_their_boxes() -> None:
    found = split_mask(MASK, (POLYP, ULCER), ("ulcer",))
    assert found is not None
    assert np.array_equal(found[0], square(20, 20, 10)) and np.array_equal(found[1], square(2, 2, 8))


def test_lesions_that_touch_cannot_be_told_apart() -> None:
    joined = MASK | square(6, 6, 18)
    assert split_mask(joined, (POLYP, ULCER), ("ulcer",)) is None


def test_a_part_in_no_box_cannot_be_named() -> None:
    assert split_mask(MASK | square(34, 2, 4), (POLYP, ULCER), ("ulcer",)) is None
    assert split_mask(MASK, (), ("ulcer",)) is None


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(["polyp", "ulcer"])))
def test_the_two_masks_make_up_the_whole_and_do_not_overlap(findings: set[str]) -> None:
    found = split_mask(MASK, (POLYP, ULCER), findings)
    assert found is not None
    assert np.array_equal(found[0] | found[1], MASK) and not np.any(found[0] & found[1])


def test_a_box_that_reaches_beyond_the_image_holds_what_it_shows() -> None:
    beyond = (Box("polyp", -3, -2, 10, 10), Box("ulcer", 20, 20, 90, 90))
    found = split_mask(MASK, beyond, ("ulcer",))
    assert found is not None
    assert np.array_equal(found[0], square(20, 20, 10)) and np.array_equal(found[1], square(2, 2, 8))
