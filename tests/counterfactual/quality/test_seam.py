import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual.masks import Image, Mask, feathered_alpha
from cogalign.counterfactual.quality.seam import ring, seam_visibility


def mucosa(seed: int, side: int = 128) -> Image:
    """Reddish, softly textured."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(0, 60, (side, side, 3)).astype(np.float32), (0, 0), 3.0)
    return np.clip(np.array([180, 100, 80], dtype=np.float32) + noise, 0, 255).astype(np.uint8)


def disc(side: int = 128, centre: tuple[int, int] = (64, 64), radius: int = 22) -> Mask:
    rows, columns = np.ogrid[:side, :side]
    found: Mask = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return found


def lifted(image: Image, mask: Mask, feather: float, by: float = 45.0) -> tuple[Image, Mask]:
    """The image with a brighter patch behind an edge of this width."""
    alpha = feathered_alpha(mask, 0.0, feather)
    return np.clip(image + by * alpha[..., None], 0, 255).astype(np.uint8), alpha > 0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), row=st.integers(34, 94), column=st.integers(34, 94))
def test_a_hard_seam_shows_more_than_a_soft_one_and_that_more_than_none(seed: int, row: int, column: int) -> None:
    image, mask = mucosa(seed), disc(centre=(row, column))
    hard, touched_hard = lifted(image, mask, 0.0)
    soft, touched_soft = lifted(image, mask, 10.0)
    none = seam_visibility(image, image, mask)
    assert seam_visibility(hard, image, touched_hard) > 2 * seam_visibility(soft, image, touched_soft)
    assert seam_visibility(soft, image, touched_soft) > none
    assert 0.3 < none <= 1.0


def test_a_border_that_was_there_before_does_not_count() -> None:
    image = mucosa(1)
    step = image.copy()
    step[:, 64:] = np.clip(step[:, 64:].astype(int) + 60, 0, 255)
    mask = np.zeros((128, 128), dtype=bool)
    mask[40:90, 64:100] = True
    assert seam_visibility(step, step, mask) <= 1.0
    assert seam_visibility(step, image, mask) > 2.0


def test_a_reflection_elsewhere_does_not_hide_a_seam() -> None:
    image, mask = mucosa(2), disc(centre=(40, 40), radius=18)
    bright = image.copy()
    bright[96:104, 96:104] = 255
    hard, touched = lifted(image, mask, 0.0)
    hard_bright = hard.copy()
    hard_bright[96:104, 96:104] = 255
    assert seam_visibility(hard_bright, bright, touched) == pytest.approx(
        seam_visibility(hard, image, touched), rel=0.3
    )


def test_the_ring_follows_the_border_of_the_edit_and_not_that_of_the_image() -> None:
    mask = np.zeros((60, 60), dtype=bool)
    mask[:, :30] = True
    edge = ring(mask)
    assert edge[:, 28:31].all() and not edge[:, :24].any() and not edge[:, 32:].any()
    assert not ring(np.ones((20, 20), dtype=bool)).any()
    assert not ring(np.zeros((20, 20), dtype=bool)).any()


def test_an_edit_of_the_whole_image_has_no_seam() -> None:
    image = mucosa(3)
    assert seam_visibility(255 - image, image, np.ones((128, 128), dtype=bool)) == 1.0


def test_sizes_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match="wanted one size"):
        seam_visibility(mucosa(1), mucosa(1), np.ones((64, 64), dtype=bool))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), side=st.integers(16, 90))
def test_it_is_finite_and_repeats_on_any_picture(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    image, source = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(2))
    touched = rng.random((side, side)) > rng.random()
    first = seam_visibility(image, source, touched)
    assert np.isfinite(first) and first > 0
    assert first == seam_visibility(image, source, touched)
