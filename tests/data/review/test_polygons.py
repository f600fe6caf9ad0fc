import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cogalign.data.review.polygons import outlines, rasterise

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=16))


def union(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    return np.logical_or.reduce([rasterise(polygon, *shape) for polygon in polygons])


@settings(max_examples=150, deadline=None)
@given(masks)
def test_outlines_without_holes_give_the_very_same_mask(mask: np.ndarray) -> None:
    polygons, hole = outlines(mask)
    assume(polygons and not hole)
    assert np.array_equal(union(polygons, mask.shape), mask)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_a_pixel_is_in_the_mask_exactly_where_an_odd_number_of_outlines_surrounds_it(mask: np.ndarray) -> None:
    polygons, _ = outlines(mask)
    surrounding = sum((rasterise(polygon, *mask.shape).astype(int) for polygon in polygons), np.zeros(mask.shape, int))
    assert np.array_equal(surrounding % 2 == 1, mask)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 29), st.floats(-9, 29)), min_size=3, max_size=9))
@example([(0.0, 0.0), (0.0, 0.0), (1.5, 1.5)])
def test_pixels_are_filled_as_a_point_in_polygon_test_says(corners: list[tuple[float, float]]) -> None:
    from matplotlib.path import Path

    points = np.array(corners)
    ys, xs = np.mgrid[0:20, 0:20] + 0.5
    start, end = points, np.roll(points, -1, axis=0)
    expected = np.zeros((20, 20), dtype=bool)
    close = np.zeros((20, 20), dtype=bool)
    middles = np.stack([xs.ravel(), ys.ravel()], axis=1)
    for (x0, y0), (x1, y1) in zip(start, end, strict=True):
        crosses = (y0 <= ys) != (y1 <= ys)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = x0 + (ys - y0) / (y1 - y0) * (x1 - x0)
        expected ^= crosses & (at <= xs)
        # on an edge, its ends included, either answer is right
        length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-300)
        along = np.clip(((xs - x0) * (x1 - x0) + (ys - y0) * (y1 - y0)) / length, 0, 1)
        close |= np.hypot(x0 + along * (x1 - x0) - xs, y0 + along * (y1 - y0) - ys) < 1e-6
    found = rasterise(points, 20, 20)
    assert np.array_equal(found[~close], expected[~close])
    if len(corners) == 3:
        inside = Path(points).contains_points(middles, radius=-1e-6).reshape(20, 20)
        inside_reversed = Path(points[::-1]).contains_points(middles, radius=-1e-6).reshape(20, 20)
        assert not (inside & inside_reversed & ~found & ~close).any()


def test_a_square_covers_its_pixels_and_no_more() -> None:
    mask = rasterise(np.array([[2, 1], [5, 1], [5, 4], [2, 4]], dtype=float), 6, 7)
    assert mask.sum() == 9 and mask[1:4, 2:5].all()


def test_a_hole_is_told() -> None:
    mask = np.ones((5, 5), dtype=bool)
    assert outlines(mask)[1] is False
    mask[2, 2] = False
    assert outlines(mask)[1] is True


def test_pixels_that_touch_at_a_corner_keep_a_polygon_each() -> None:
    polygons, hole = outlines(np.eye(3, dtype=bool))
    assert len(polygons) == 3 and not hole and all(len(polygon) == 4 for polygon in polygons)


@pytest.mark.parametrize("points", [np.zeros((2, 2)), np.array([[0, 0], [1, np.nan], [1, 1]]), np.zeros(6)])
def test_what_is_no_polygon_is_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="polygon"):
        rasterise(points, 4, 4)
