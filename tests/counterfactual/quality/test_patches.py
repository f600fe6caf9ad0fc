import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual.quality.patches import Square, largest_part, lesion_and_free, square_around

from .test_seam import disc, mucosa


@settings(max_examples=25, deadline=None)
@given(row=st.integers(0, 127), column=st.integers(0, 127), radius=st.integers(3, 50), seed=st.integers(0, 99))
def test_both_squares_have_one_size_lie_inside_and_the_free_one_is_free(
    row: int, column: int, radius: int, seed: int
) -> None:
    lesion = disc(centre=(row, column), radius=radius)
    around, free = lesion_and_free(mucosa(seed), lesion, np.random.default_rng(seed))
    for square in (around, free):
        if square is not None:
            assert square.top >= 0 and square.top + square.side <= 128
            assert square.left >= 0 and square.left + square.side <= 128
            assert square.side == around.side
    assert np.asarray(lesion[around.top : around.top + around.side, around.left : around.left + around.side]).any()
    if free is not None:
        assert not lesion[free.top : free.top + free.side, free.left : free.left + free.side].any()


def test_a_lesion_that_fills_the_image_has_no_free_square() -> None:
    around, free = lesion_and_free(mucosa(1), np.ones((128, 128), dtype=bool), np.random.default_rng(0))
    assert free is None and around == Square(0, 0, 128)


def test_the_square_lies_around_the_largest_part() -> None:
    mask = disc(centre=(30, 30), radius=12) | disc(centre=(100, 100), radius=4)
    assert np.array_equal(largest_part(mask), disc(centre=(30, 30), radius=12))
    square = square_around(mask)
    assert abs(square.top + square.side / 2 - 30.5) <= 1 and abs(square.left + square.side / 2 - 30.5) <= 1


def test_an_empty_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty mask"):
        square_around(np.zeros((20, 20), dtype=bool))
