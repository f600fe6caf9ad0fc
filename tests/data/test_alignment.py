import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.alignment import aligned, detail_of, same_photograph, visible_fields


def field(seed: int, part: slice = slice(0, 64)) -> np.ndarray:
    """A part of a drawn grey image in 32 x 32 pixels, whole grey levels."""
    noise = np.random.default_rng(seed).random((9, 9)).astype(np.float32)
    whole = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC).clip(0, 1) * 200 + 30
    return np.rint(cv2.resize(whole[part, part], (32, 32), interpolation=cv2.INTER_AREA)).astype(np.uint8)


def test_laying_one_field_on_another_finds_the_shift_and_tells_other_fields():
    whole, part = field(3), field(3, slice(2, 60))
    assert np.corrcoef(whole.ravel(), part.ravel())[0, 1] < 0.9
    correlation, (a, b, c, d) = aligned(part.astype(np.float32), whole.astype(np.float32))
    assert correlation > 0.98
    assert (a, c) == pytest.approx((58 / 64, 58 / 64), abs=0.02)
    assert (b, d) == pytest.approx((-2 / 64, -2 / 64), abs=0.02)
    assert aligned(whole.astype(np.float32), field(4).astype(np.float32))[0] < 0.8
    assert aligned(whole.astype(np.float32), np.zeros((32, 32), np.float32))[0] == -1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(0, 4), st.floats(0.5, 1.0), st.floats(0, 0.5), st.integers(0, 30))
def test_neither_light_nor_order_matters(seed, cut, gain, falls, brighter):
    axis = np.linspace(-1, 1, 32)
    light = gain * (1 - falls * (axis[:, None] ** 2 + axis**2) / 2)
    one, other = field(seed), field(seed, slice(cut, 64 - cut))
    lit = np.rint(other * light + brighter * 0.5).clip(0, 255).astype(np.uint8)
    assert same_photograph(one.ravel(), lit.ravel()) == same_photograph(lit.ravel(), one.ravel())
    dimmer = np.rint(other * gain + brighter * 0.5).astype(np.uint8)
    assert same_photograph(one.ravel(), dimmer.ravel()) and same_photograph(dimmer.ravel(), one.ravel())
    assert not same_photograph(one.ravel(), field(seed + 100).ravel())


def test_light_that_falls_off_and_black_corners_are_no_detail():
    x, y = np.meshgrid(*2 * [(np.arange(32) * 2 + 1) / 32 - 1])
    light = 200 * (1 - 0.45 * (x * x + y * y))
    light[np.abs(x) + np.abs(y) > 1.42] = 0
    rough = light + np.where(light > 0, 12 * np.sin(9 * x + 3 * y), 0)
    detail = detail_of(np.rint(np.stack((light, rough))).clip(0, 255).astype(np.uint8).reshape(2, -1))
    assert detail.spread[0] < 1 and 6 < detail.spread[1] < 12
    assert np.linalg.norm(detail.unit[1]) == pytest.approx(1, abs=1e-5)


def test_the_visible_field_is_cut_out_of_a_black_frame_and_stays_as_it_is_without_one():
    inside = cv2.resize(field(7), (24, 20), interpolation=cv2.INTER_AREA)
    frame = np.zeros((32, 32), np.uint8)
    frame[4:24, 6:30] = inside
    fields = visible_fields(np.stack((frame, field(7), np.zeros((32, 32), np.uint8))).reshape(3, -1))
    assert np.corrcoef(fields[0], field(7).ravel())[0, 1] > 0.97
    assert np.array_equal(fields[1], field(7).ravel()) and not fields[2].any()
    assert frame[0, 0] == 0 and frame.sum() == inside.sum()
