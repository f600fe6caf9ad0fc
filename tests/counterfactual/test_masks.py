import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual import masks
from cogalign.counterfactual.masks import highlights, lesions, pixels_in
from cogalign.data.case import Box


def disc(size: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_radius_is_that_of_a_disc_of_equal_area() -> None:
    assert masks.lesion_radius(disc(101, 50, 50, 20)) == pytest.approx(20, rel=0.01)
    assert masks.lesion_radius(np.zeros((4, 4), bool)) == 0


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [(0, "empty mask"), (1, "lesion smaller"), (50, None), (99, "lesion larger"), (100, "full-frame")],
)
def test_area_limits(pixels: int, problem: str | None) -> None:
    mask = (np.arange(100) < pixels).reshape(10, 10)
    found = masks.area_problem(mask, 0.02, 0.6)
    assert found is None if problem is None else found is not None and found.startswith(problem)


@settings(max_examples=30, deadline=None)
@given(
    y=st.floats(0, 63),
    x=st.floats(0, 63),
    radius=st.floats(1, 25),
    dilate=st.floats(0, 6),
    feather=st.floats(0, 8),
)
def test_alpha_is_one_on_the_dilated_mask_and_zero_beyond_the_feather(
    y: float, x: float, radius: float, dilate: float, feather: float
) -> None:
    mask = disc(64, round(y), round(x), radius)
    alpha = masks.feathered_alpha(mask, dilate, feather)
    rows, columns = np.nonzero(mask)
    grid = np.mgrid[:64, :64]
    distance = np.sqrt((grid[0][..., None] - rows) ** 2 + (grid[1][..., None] - columns) ** 2).min(-1)
    assert alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    # OpenCV's 5 x 5 chamfer distance is within 3 % of the exact one.
    assert np.all(alpha[distance <= 0.96 * dilate] == 1)
    assert np.all(alpha[distance > 1.04 * (dilate + feather) + 1e-6] == 0)


def test_alpha_of_an_empty_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pixel"):
        masks.feathered_alpha(np.zeros((8, 8), bool), 1, 1)


def test_lesions_are_disjoint_cover_the_mask_and_come_largest_first() -> None:
    mask = disc(96, 20, 20, 8) | disc(96, 70, 60, 14)
    found = masks.lesions(mask)
    assert [int(part.sum()) for part in found] == sorted((int(part.sum()) for part in found), reverse=True)
    assert len(found) == 2
    assert np.array_equal(found[0] | found[1], mask) and not np.any(found[0] & found[1])


def test_spots_of_one_box_are_one_lesion() -> None:
    mask = disc(96, 20, 20, 5) | disc(96, 20, 45, 5) | disc(96, 80, 80, 5)
    boxes = (Box("erosion", 10, 10, 55, 30), Box("polyp", 70, 70, 90, 90))
    assert len(masks.lesions(mask)) == 3
    found = masks.lesions(mask, boxes)
    assert len(found) == 2
    assert np.array_equal(found[0], mask & (np.mgrid[:96, :96][0] < 50))


def endoscopy(size: int = 128) -> np.ndarray:
    image = np.full((size, size, 3), 6, np.uint8)
    image[disc(size, size / 2, size / 2, 0.48 * size)] = (200, 120, 100)
    return image


def test_visible_mucosa_is_the_field_without_border_lumen_and_guide_box() -> None:
    image = endoscopy()
    image[disc(128, 50, 90, 12)] = (20, 8, 6)
    image[99:126, 3:30] = (40, 160, 70)
    visible = masks.visible_mucosa(image)
    assert visible[64, 40] and not visible[50, 90] and not visible[2, 2]
    assert not visible[105:120, 8:25].any()
    assert 0.55 < visible.mean() < 0.75


def test_visible_mucosa_of_narrow_band_light_does_not_need_red() -> None:
    image = np.full((64, 64, 3), (60, 120, 130), np.uint8)
    assert masks.visible_mucosa(image).mean() > 0.9
    assert not masks.visible_mucosa(np.zeros((64, 64, 3), np.uint8)).any()


def test_guide_box_is_found_in_its_corner_and_its_pixels_leave_the_mask() -> None:
    image = endoscopy()
    assert masks.corner_box(image) is None
    image[99:126, 3:30] = (150, 150, 158)
    assert masks.corner_box(image) == masks.corners(image.shape)[0]
    mask = disc(128, 95, 30, 15)
    seen = masks.outside_box(image, mask)
    assert not seen[masks.corners(image.shape)[0]].any() and seen[90, 35]
    assert np.array_equal(masks.outside_box(endoscopy(), mask), mask)


def test_holes_are_filled_unless_they_reach_the_border() -> None:
    mask = disc(64, 32, 32, 20) & ~disc(64, 32, 32, 6)
    assert np.array_equal(masks.fill_holes(mask), disc(64, 32, 32, 20))
    cut = mask.copy()
    cut[30:34, 32:] = False
    assert np.array_equal(masks.fill_holes(cut), cut)
    assert masks.fill_holes(np.ones((5, 5), bool)).all() and not masks.fill_holes(np.zeros((5, 5), bool)).any()


def test_clean_drops_small_parts_and_keeps_the_others() -> None:
    mask = disc(64, 20, 20, 8) | disc(64, 50, 50, 4) | disc(64, 5, 60, 1)
    assert np.array_equal(masks.clean(mask, 0.003), disc(64, 20, 20, 8) | disc(64, 50, 50, 4))
    assert np.array_equal(masks.clean(mask, 0.02), disc(64, 20, 20, 8))
    assert not masks.clean(mask, 0.5).any() and not masks.clean(np.zeros((9, 9), bool), 0.0).any()
    assert masks.clean(np.ones((9, 9), bool), 0.1).all()


def test_highlights_are_what_is_nearly_white_with_a_margin() -> None:
    image = np.full((40, 40, 3), (200, 120, 100), np.uint8)
    image[10:13, 10:13] = 250
    image[30, 30] = (250, 60, 60)
    found = highlights(image)
    assert found[8:15, 8:15].all() and found.sum() == 49


def test_a_box_that_reaches_beyond_the_image_keeps_its_spots_together() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:5, 0:4] = mask[10:13, 2:6] = mask[30:34, 30:34] = True
    found = lesions(mask, (Box("polyp", -5, -5, 8, 15), Box("polyp", 28, 28, 60, 60)))
    assert [int(part.sum()) for part in found] == [24, 16]


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(-30, 60)] * 4))
def test_pixels_are_counted_where_box_and_image_meet(sides: tuple[int, int, int, int]) -> None:
    box = Box("polyp", *sides)
    rows, columns = np.mgrid[:20, :30]
    inside = (rows >= box.ymin) & (rows < box.ymax) & (columns >= box.xmin) & (columns < box.xmax)
    assert pixels_in(np.ones((20, 30), dtype=bool), [box]) == [int(inside.sum())]
