import cv2
import numpy as np
import pytest

from cogalign.data.overlay_detection import Overlays, find_overlays
from cogalign.data.overlay_paint import draw_overlays, paint_over
from tests.data.test_overlays import mucosa, with_box, with_text

GREEN = (20, 170, 140)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_letters_are_painted_over_and_the_rest_stays():
    bare = mucosa(0)
    written = with_text(bare)
    found = paint_over(written, find_overlays(written))
    assert find_overlays(found) == Overlays()
    letters = (written != bare).any(axis=-1)
    assert difference(found[letters], bare[letters]) < 12 < difference(written[letters], bare[letters]) / 4
    far = cv2.dilate(letters.astype(np.uint8), np.ones((15, 15))) == 0
    assert (found[far] == bare[far]).all()


@pytest.mark.parametrize("colour", [GREEN, (0, 0, 0)])
def test_a_corner_box_becomes_what_lies_beside_it(colour):
    boxed = with_box(mucosa(1), colour)
    overlays = find_overlays(boxed)
    assert overlays.guide_box
    found = paint_over(boxed, overlays)
    assert find_overlays(found).guide_box == ()
    inside = found[-120:-10, 60:140].astype(int)
    assert (inside[..., 0] > inside[..., 1]).mean() > 0.95  # reddish, as mucosa is
    assert (found[:300] == boxed[:300]).all()


def test_the_dark_frame_of_a_corner_box_goes_with_it():
    image = mucosa(2)
    image[-140:, :160] = 0
    image[-130:, :150] = GREEN
    found = paint_over(image, find_overlays(image))
    beside = found[-100:-20, 150:162].max(axis=-1)
    assert (beside > 60).mean() > 0.95


def test_single_letters_on_dark_ground_near_a_line_go_but_the_rest_of_an_image_without_overlays_stays():
    image = mucosa(3)
    image[:, :110] = 4
    written = image.copy()
    for line, text in enumerate(("12/03/2014", "10:47:31")):
        cv2.putText(written, text, (4, 160 + 24 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1)
    cv2.putText(written, "S", (4, 90), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1)
    found = paint_over(written, find_overlays(written))
    assert found[70:100, :30].max() < 30 < written[70:100, :30].max()
    assert (paint_over(written, Overlays()) == written).all()


def test_an_image_that_is_all_overlay_is_still_painted():
    image = np.full((40, 40, 3), GREEN, np.uint8)
    assert paint_over(image, Overlays(guide_box=((0, 0, 40, 40),))).shape == image.shape


def test_the_overlays_of_another_image_are_drawn_at_their_relative_place():
    donor = with_box(with_text(mucosa(4)), GREEN)
    lent = find_overlays(donor)
    bare = mucosa(5, 300, 250)
    found, now = draw_overlays(bare, donor, lent)
    assert now.guide_box == tuple(tuple(round(value / 2) for value in box) for box in lent.guide_box)
    (left, top, right, bottom) = now.guide_box[0]
    assert difference(found[top + 2 : bottom - 2, left + 2 : right - 2], np.array(GREEN)) < 3
    assert len(now.text) == len(lent.text)
    for left, top, right, bottom in now.text:
        assert found[top:bottom, left:right].min(axis=-1).max() > bare[top:bottom, left:right].min(axis=-1).max() + 40
    assert difference(bare, mucosa(5, 300, 250)) == 0  # the argument is left alone


def test_letters_bring_no_ground_of_their_own_along():
    donor = with_text(np.zeros((500, 600, 3), np.uint8))
    bare = mucosa(6)
    found, now = draw_overlays(bare, donor, find_overlays(donor))
    assert now.text and found.astype(int).min() >= 0
    darker = (found.astype(int) - bare).min(axis=-1) < -10
    assert not darker.any()


def test_a_corner_box_does_not_hide_the_lesion():
    donor = with_box(mucosa(7), GREEN)
    lesion = np.zeros((500, 600), bool)
    lesion[400:470, 40:120] = True
    lent = find_overlays(donor)
    _, now = draw_overlays(mucosa(8), donor, lent, lesion)
    ((left, top, right, bottom),) = now.guide_box
    assert not lesion[top:bottom, left:right].any()
    ((left, top, right, bottom),) = lent.guide_box
    assert lesion[top:bottom, left:right].all() or lesion[top:bottom, left:right].sum() > 0
