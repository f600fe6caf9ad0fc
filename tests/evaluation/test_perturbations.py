import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.evaluation.perturbations import blur_background, spots


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


def noisy(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(height: int = 96, width: int = 128, radius: int = 15) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    return (y - 40) ** 2 + (x - 50) ** 2 <= radius**2


def test_a_blurred_background_leaves_the_lesion_and_the_input_untouched() -> None:
    image, mask = noisy(), disc()
    blurred = blur_background(image, mask, 0.1)
    assert np.array_equal(blurred[mask], image[mask]) and np.array_equal(image, noisy())
    far = ~disc(radius=20)
    assert blurred[far].std() < 0.2 * image[far].std()


def test_a_larger_sigma_leaves_less_of_the_background() -> None:
    far = ~disc(radius=20)
    left = [blur_background(noisy(), disc(), sigma)[far].std() for sigma in (0.01, 0.05, 0.2)]
    assert left == sorted(left, reverse=True) and left[-1] > 0


def test_no_colour_of_the_lesion_leaks_into_the_background() -> None:
    image, mask = np.full((96, 128, 3), (190, 90, 80), np.uint8), disc()
    image[mask] = (0, 255, 0)
    assert np.array_equal(blur_background(image, mask, 0.2), image)


def test_the_blur_sets_in_softly_around_the_lesion() -> None:
    image, mask = np.tile(np.array([[[0], [255]]], np.uint8), (1, 200, 3)).reshape(1, -1, 3), None
    image = np.repeat(image, 400, axis=0)  # stripes of one pixel
    mask = np.zeros(image.shape[:2], bool)
    mask[100:300, 100:300] = True
    contrast = np.ptp(blur_background(image, mask, 0.05).astype(int)[300:310, 150:250], axis=1)[:, 0]
    assert contrast[0] > 200 and contrast[-1] < 20 and np.all(np.diff(contrast) <= 0)
    assert len(set(contrast.tolist())) > 5


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(1e-3, 2), st.integers(0, 2**16))
def test_any_size_and_mask_can_be_blurred(height: int, width: int, sigma: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    mask.flat[0] = True
    image = noisy(height, width, seed)
    blurred = blur_background(image, mask, sigma)
    assert blurred.shape == image.shape and blurred.dtype == np.uint8 and np.array_equal(blurred[mask], image[mask])


@pytest.mark.parametrize(
    ("mask", "sigma", "words"),
    [(np.zeros((96, 128), bool), 0.1, "with 0 pixels set"), (disc(90), 0.1, r"shape \(90, 128\)"),
     (disc().astype(np.uint8), 0.1, "of uint8"), (disc(), 0.0, "sigma: found 0.0")],
)  # fmt: skip
def test_a_blur_without_a_lesion_or_of_no_width_is_refused(mask: np.ndarray, sigma: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        blur_background(noisy(), mask, sigma)
