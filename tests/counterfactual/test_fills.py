import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cogalign.counterfactual.fills import FILLS, gaussian_blur, spread, surround_blur, white
from cogalign.counterfactual.masks import feathered_alpha

RNG = np.random.default_rng(0)
IMAGE = cv2.GaussianBlur(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8), (0, 0), 2)


def disc(y: int, x: int, radius: int, size: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("sigma", [0.7, 6.0, 30.0])
@pytest.mark.parametrize("centre", [(48, 48), (3, 90)])
def test_bytes_beyond_the_soft_mask_stay_and_the_source_is_not_written(
    name: str, sigma: float, centre: tuple[int, int]
) -> None:
    before = IMAGE.copy()
    alpha = feathered_alpha(disc(*centre, 14), 2, 3)
    result = FILLS[name](IMAGE, alpha, sigma, None)
    assert result.dtype == np.uint8 and result.shape == IMAGE.shape
    assert np.array_equal(result[alpha == 0], IMAGE[alpha == 0])
    assert np.any(result[alpha == 1] != IMAGE[alpha == 1])
    assert np.array_equal(IMAGE, before)
    assert np.array_equal(result, FILLS[name](IMAGE, alpha, sigma, None))


@pytest.mark.parametrize("sigma", [1.5, 4.0, 9.0, 16.0])
def test_gaussian_blur_is_equation_11_with_a_soft_mask(sigma: float) -> None:
    alpha = feathered_alpha(disc(50, 44, 15), 2, 4)
    blurred = cv2.GaussianBlur(IMAGE.astype(np.float64), (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    expected = IMAGE * (1 - alpha[..., None]) + blurred * alpha[..., None]
    assert np.abs(gaussian_blur(IMAGE, alpha, sigma) - expected).max() <= 2.0


def test_surround_blur_reads_nothing_of_what_it_covers() -> None:
    mask = disc(48, 48, 18)
    alpha = feathered_alpha(mask, 2, 3)
    other = IMAGE.copy()
    other[mask] = (255, 0, 0)
    assert np.array_equal(surround_blur(IMAGE, alpha, 6)[mask], surround_blur(other, alpha, 6)[mask])
    assert not np.array_equal(gaussian_blur(IMAGE, alpha, 6)[mask], gaussian_blur(other, alpha, 6)[mask])


def test_surround_blur_hides_a_lesion_that_the_papers_blur_leaves_as_a_stain() -> None:
    mucosa = np.full((96, 96, 3), (200, 120, 100), np.uint8)
    mask = disc(48, 48, 18)
    mucosa_with = mucosa.copy()
    mucosa_with[mask] = (120, 20, 30)
    alpha = feathered_alpha(mask, 2, 2)
    stain = np.abs(gaussian_blur(mucosa_with, alpha, 9).astype(int) - mucosa)[48, 48].max()
    hidden = np.abs(surround_blur(mucosa_with, alpha, 9).astype(int) - mucosa).max()
    assert hidden <= 1 and stain > 40


def test_surround_blur_does_not_read_hidden_pixels() -> None:
    image = np.full((96, 96, 3), 150, np.uint8)
    image[:, 60:] = 0
    hidden = np.zeros((96, 96), bool)
    hidden[:, 60:] = True
    alpha = feathered_alpha(disc(48, 48, 10), 0, 0)
    assert np.all(surround_blur(image, alpha, 5, hidden)[alpha == 1] == 150)
    assert surround_blur(image, alpha, 5)[48, 57].max() < 140


def test_white_is_white_on_the_mask() -> None:
    alpha = feathered_alpha(disc(48, 48, 10), 0, 4)
    assert np.all(white(IMAGE, alpha, 1)[alpha == 1] == 255)


@settings(max_examples=25, deadline=None)
@given(known=hnp.arrays(bool, (24, 31)), sigma=st.floats(0.5, 20))
def test_spread_stays_within_the_known_values(known: np.ndarray, sigma: float) -> None:
    values = np.random.default_rng(1).uniform(10, 200, (24, 31, 3)).astype(np.float32)
    result = spread(values, known, sigma)
    assert np.isfinite(result).all()
    if known.any():
        assert result.min() >= values[known].min() - 0.5 and result.max() <= values[known].max() + 0.5
    else:
        assert np.all(result == 0)
