import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cogalign.counterfactual.fills import FILLS, fill_function, gaussian_blur, spread, surround_blur
from cogalign.counterfactual.fills.flat import mean, white
from cogalign.counterfactual.masks import feathered_alpha
from cogalign.recipe import Fill

RNG = np.random.default_rng(0)
IMAGE = cv2.GaussianBlur(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8), (0, 0), 2)


def disc(y: int, x: int, radius: int, size: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("sigma", [0.7, 30.0])
@pytest.mark.parametrize("centre", [(48, 48), (3, 90)])
def test_bytes_beyond_the_soft_mask_stay_and_the_source_is_not_written(
    name: Fill, sigma: float, centre: tuple[int, int]
) -> None:
    before = IMAGE.copy()
    alpha = feathered_alpha(disc(*centre, 14), 2, 3)
    result = FILLS[name](IMAGE, alpha, sigma, None, rng())
    assert result.dtype == np.uint8 and result.shape == IMAGE.shape
    assert np.array_equal(result[alpha == 0], IMAGE[alpha == 0])
    assert np.any(result[alpha == 1] != IMAGE[alpha == 1])
    assert np.array_equal(IMAGE, before)
    assert np.array_equal(result, FILLS[name](IMAGE, alpha, sigma, None, rng()))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(FILLS)),
    height=st.integers(8, 48),
    width=st.integers(8, 48),
    grey=st.booleans(),
    seed=st.integers(0, 10**6),
    covers=st.sampled_from(["pixel", "border", "most", "scatter"]),
    hides=st.sampled_from(["nothing", "some", "all"]),
)
def test_every_fill_works_for_every_mask(
    name: Fill, height: int, width: int, grey: bool, seed: int, covers: str, hides: str
) -> None:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 1 if grey else 3), dtype=np.uint8)
    image = np.ascontiguousarray(np.broadcast_to(image, (height, width, 3)))
    mask = np.zeros((height, width), bool)
    if covers == "pixel":
        mask[random.integers(height), random.integers(width)] = True
    elif covers == "border":
        mask[: random.integers(1, height // 2 + 1)] = True
    elif covers == "most":
        mask[:] = True
        mask[random.integers(height), random.integers(width)] = False
    else:
        mask = random.random((height, width)) < 0.2
        mask[0, 0] = True
    hidden = {"nothing": None, "some": random.random(mask.shape) < 0.5, "all": np.ones_like(mask)}[hides]
    alpha = mask.astype(np.float32) * np.float32(random.uniform(0.3, 1.0))
    sigma = float(random.uniform(0.5, 20))
    result = FILLS[name](image, alpha, sigma, hidden, rng())
    assert result.dtype == np.uint8 and result.shape == image.shape
    assert np.array_equal(result[~mask], image[~mask])
    assert np.array_equal(result, FILLS[name](image, alpha, sigma, hidden, rng()))


CONTINUING = sorted(set(FILLS) - {"gaussian_blur", "white"})


@pytest.mark.parametrize("name", CONTINUING)
def test_a_fill_reads_neither_the_lesion_nor_hidden_pixels(name: Fill) -> None:
    hidden = np.zeros((96, 96), bool)
    hidden[:, 62:] = True
    hidden[30:34, 20:25] = True
    alpha = feathered_alpha(disc(48, 48, 12), 1, 3)
    other = IMAGE.copy()
    other[hidden] = (0, 255, 0)
    other[alpha == 1] = (255, 0, 0)
    first = FILLS[name](IMAGE, alpha, 5.0, hidden, rng())
    second = FILLS[name](other, alpha, 5.0, hidden, rng())
    assert np.array_equal(first[alpha == 1], second[alpha == 1])


@pytest.mark.parametrize("name", CONTINUING)
def test_on_mucosa_of_one_colour_the_lesion_is_gone(name: Fill) -> None:
    mucosa = np.full((96, 96, 3), (200, 120, 100), np.uint8)
    image = mucosa.copy()
    lesion = disc(40, 50, 15)
    image[lesion] = (90, 20, 30)
    result = FILLS[name](image, feathered_alpha(lesion, 2, 3), 7.0, None, rng())
    assert np.abs(result.astype(int) - mucosa).max() <= 4  # Telea's weights do not add up to 1 exactly


@pytest.mark.parametrize("name", CONTINUING)
def test_where_all_is_hidden_everything_beyond_the_mask_is_read(name: Fill) -> None:
    alpha = feathered_alpha(disc(48, 48, 14), 2, 3)
    everything = np.ones((96, 96), bool)
    shown = FILLS[name](IMAGE, alpha, 5.0, None, rng())
    assert np.array_equal(FILLS[name](IMAGE, alpha, 5.0, everything, rng()), shown)


@pytest.mark.parametrize("name", CONTINUING)
def test_a_mask_over_the_whole_image_is_an_error(name: Fill) -> None:
    with pytest.raises(ValueError, match="mask covers the whole image"):
        FILLS[name](IMAGE, np.ones((96, 96), np.float32), 5.0, None, rng())


@pytest.mark.parametrize("name", FILLS)
def test_an_empty_mask_is_an_error(name: Fill) -> None:
    with pytest.raises(ValueError, match="mask"):
        FILLS[name](IMAGE, np.zeros((96, 96), np.float32), 5.0, None, rng())


def test_fills_are_found_by_name() -> None:
    assert fill_function("texture", None) is FILLS["texture"]
    with pytest.raises(ValueError, match="diffusion_model"):
        fill_function("diffusion", None)
    with pytest.raises(ValueError, match="'blur'"):
        fill_function("blur", None)  # type: ignore[arg-type]


def test_mean_takes_the_colour_of_the_ring_around_each_piece() -> None:
    image = np.full((96, 96, 3), (200, 120, 100), np.uint8)
    image[:, 48:] = (90, 60, 50)
    alpha = (disc(48, 20, 9) | disc(48, 76, 9)).astype(np.float32)
    result = mean(image, alpha, 4.0)
    assert np.array_equal(result[48, 20], (200, 120, 100)) and np.array_equal(result[48, 76], (90, 60, 50))


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
