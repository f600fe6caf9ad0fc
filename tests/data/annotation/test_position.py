"""Where lesions lie, and what a text says of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.annotation.position import MOST_PLACES, Place, from_boxes, from_mask
from cogalign.data.annotation.stated import contradicts, stated_positions
from cogalign.data.case import Box


def at(x: float, y: float, half: float = 0.08) -> Place:
    return Place("polyp", x, y, x - half, y - half, x + half, y + half, 4 * half * half)


def sides(text: str) -> list[set[str]]:
    return [set(stated.sides) for stated in stated_positions(text, ("polyp",))]


def test_a_mask_gives_its_parts_the_largest_first() -> None:
    mask = np.zeros((100, 200), dtype=bool)
    mask[10:20, 20:40] = True
    mask[70:90, 150:190] = True
    mask[50, 100] = True  # a speck
    first, second = from_mask(mask, "polyp")
    assert (first.sides, second.sides) == ("lower right", "upper left")
    assert first.share == pytest.approx(800 / 20000) and (first.x, first.y) == pytest.approx((0.85, 0.8))
    assert (first.hour, second.hour) == (4, 10) and second.finding == "polyp"


def test_a_single_speck_is_still_a_place() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[50, 50] = True
    (place,) = from_mask(mask, "")
    assert place.sides == "centre" and place.hour is None and place.size == "less than 0.1 % of the image area"


def test_boxes_take_centre_and_share_from_a_mask_inside_them() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[0:10, 0:10] = True
    boxes = [Box("polyp", 0, 0, 40, 40), Box("ulcer", 60, 60, 100, 100)]
    (ulcer, polyp) = from_boxes(boxes, 100, 100, mask)
    assert (ulcer.finding, ulcer.boxed, ulcer.share) == ("ulcer", True, pytest.approx(0.16))
    assert (polyp.x, polyp.y, polyp.share, polyp.boxed) == pytest.approx((0.05, 0.05, 0.01, False))


@given(st.lists(st.tuples(*[st.integers(-20, 120)] * 4), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_no_box_makes_a_place_outside_the_image(corners: list[tuple[int, int, int, int]]) -> None:
    places = from_boxes([Box("polyp", *corner) for corner in corners], 100, 80)
    assert 1 <= len(places) <= MOST_PLACES
    for place in places:
        assert 0 <= place.xmin <= place.x <= place.xmax <= 1 and 0 <= place.ymin <= place.y <= place.ymax <= 1
        assert place.words and (place.hour is None or 1 <= place.hour <= 12)


@pytest.mark.parametrize(("text", "expected"), [
    ("A polyp in the upper left of the image.", [{"upper", "left"}]),
    ("A polyp at the upper-right quadrant.", [{"upper", "right"}]),
    ("The lesion lies in the lower half of the field of view.", [{"lower"}]),
    ("A polyp in the centre of the frame, no ulcer.", [{"centre"}]),
    ("A centrally located polyp.", [{"centre"}]),
    ("A polyp on the left side of the image.", [{"left"}]),
    ("A polyp in the bottom right corner.", [{"lower", "right"}]),
    ("A polyp in the lower centre of the image.", [{"lower"}]),
    ("A polyp of the left colon.", []),
    ("A polyp in the upper third of the esophagus.", []),
    ("A polyp with a central depression and a right-sided fold.", []),
    ("The lumen is seen in the lower right of the image.", []),
    ("A polyp, and the lumen lies in the lower right of the image.", []),
    ("A polyp, bubbles in the upper left of the image.", []),
    ("Smooth mucosa in the upper left of the image.", []),
    ("No polyp in the upper left of the image.", []),
    ("A polyp in the upper left colon.", []),
])  # fmt: skip
def test_positions_of_lesions_are_read_and_others_are_not(text: str, expected: list[set[str]]) -> None:
    assert sides(text) == expected


@pytest.mark.parametrize(("text", "hours"), [("A polyp at 3 o'clock.", (3,)), ("A polyp at 3-5 o’clock.", (3, 5)),
                                             ("A polyp from 10 to 12 o'clock.", (10, 12)), ("A polyp at 13 o'clock.", None)])  # fmt: skip
def test_hours_are_read(text: str, hours: tuple[int, ...] | None) -> None:
    found = stated_positions(text, ("polyp",))
    assert [stated.hours for stated in found] == ([hours] if hours else [])


@pytest.mark.parametrize(("text", "x", "y", "wrong"), [
    ("A polyp in the upper left of the image.", 0.2, 0.2, False),
    ("A polyp in the upper left of the image.", 0.8, 0.2, True),
    ("A polyp in the left half of the image.", 0.55, 0.5, False),
    ("A polyp in the left half of the image.", 0.65, 0.5, True),
    ("A polyp in the centre of the image.", 0.6, 0.4, False),
    ("A polyp in the centre of the image.", 0.9, 0.5, True),
    ("A polyp at 12 o'clock.", 0.5, 0.1, False),
    ("A polyp at 1 o'clock.", 0.3, 0.1, False),
    ("A polyp at 6 o'clock.", 0.5, 0.1, True),
    ("A polyp at 6 o'clock.", 0.5, 0.45, False),
])  # fmt: skip
def test_a_position_is_wrong_only_where_it_clearly_is(text: str, x: float, y: float, wrong: bool) -> None:
    (stated,) = stated_positions(text, ("polyp",))
    assert contradicts(stated, [at(x, y)]) is wrong


def test_one_of_several_places_is_enough() -> None:
    (stated,) = stated_positions("A polyp in the lower right of the image.", ("polyp",))
    assert not contradicts(stated, [at(0.2, 0.2), at(0.8, 0.8)]) and contradicts(stated, [at(0.2, 0.8), at(0.8, 0.2)])
    assert not contradicts(stated, [])


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95))
@settings(max_examples=80, deadline=None)
def test_what_we_tell_of_a_place_is_never_contradicted(x: float, y: float) -> None:
    place = at(x, y, 0.04)
    for stated in stated_positions(f"A polyp in the {place.words}.", ("polyp",)):
        assert not contradicts(stated, [place])
