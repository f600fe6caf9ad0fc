import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.evaluation.perturbations import spots


def mucosa(height: int = 96, width: int = 96) -> np.ndarray:
    return np.full((height, width, 3), (190, 90, 80), np.uint8)


def test_same_generator_state_gives_the_same_image_and_leaves_the_input() -> None:
    image = mucosa()
    first = spots(image, np.random.default_rng(1), 6)
    assert np.array_equal(first, spots(image, np.random.default_rng(1), 6))
    assert not np.array_equal(first, spots(image, np.random.default_rng(2), 6))
    assert np.array_equal(image, mucosa())


def test_more_spots_change_more_of_the_image() -> None:
    image = mucosa()
    changed = [
        np.mean(np.any(spots(image, np.random.default_rng(0), count) != image, axis=2)) for count in (0, 2, 12, 40)
    ]
    assert changed[0] == 0
    assert changed == sorted(changed) and 0.01 < changed[2] < 0.4


def test_reflections_saturate() -> None:
    assert spots(mucosa(), np.random.default_rng(0), 2).max() >= 245


def test_overlays_in_the_corners_stay_clear() -> None:
    drawn = spots(mucosa(), np.random.default_rng(0), 60)
    for corner in (np.s_[:9, :9], np.s_[-9:, :9], np.s_[:9, -9:], np.s_[-9:, -9:]):
        assert np.array_equal(drawn[corner], mucosa()[corner])


def test_centres_lie_in_the_field_of_view() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 40:60] = 120
    changed = np.any(spots(image, np.random.default_rng(0), 30) != image, axis=2)
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 28 and rows.max() <= 72 and columns.min() >= 28 and columns.max() <= 72


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 8), st.integers(0, 2**16))
def test_any_size_gives_an_image_of_the_same_size(height: int, width: int, count: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn = spots(image, np.random.default_rng(seed), count)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_arrays_are_refused_with_what_was_found(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=str(image.dtype)):
        spots(image, np.random.default_rng(0))


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="found -1"):
        spots(mucosa(), np.random.default_rng(0), -1)
