import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual.evidence import (
    NO_EVIDENCE,
    NOTHING_IN_BOX,
    NOTHING_PROPOSED,
    NOTHING_SEEN,
    OUTSIDE,
    TOO_WIDE,
    UNSURE,
    WITHOUT_BOX,
    FoundMask,
    Untrusted,
    find_mask,
    promised_dice,
)
from cogalign.counterfactual.grabcut import cut_out, shape_plausibility
from cogalign.data.case import Box, Case
from cogalign.recipe import EVIDENCE, MaskSettings

SIDE = 128


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def picture(*lesions: np.ndarray, contrast: int = 60) -> np.ndarray:
    """Mucosa with shading and grain, and lesions of another colour."""
    rng = np.random.default_rng(1)
    image = np.full((SIDE, SIDE, 3), (190, 110, 90), np.float32) - np.mgrid[:SIDE, :SIDE][0][..., None] * 0.2
    for lesion in lesions:
        image[lesion] += (contrast * 0.4, -contrast * 0.6, -contrast * 0.4)
    image += cv2.GaussianBlur(rng.normal(0, 14, image.shape).astype(np.float32), (0, 0), 1.2)
    return np.clip(image, 0, 255).astype(np.uint8)


def box_of(mask: np.ndarray, finding: str = "polyp") -> Box:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return Box(finding, x, y, x + width, y + height)


def case(*boxes: Box, findings: tuple[str, ...] = ("polyp",)) -> Case:
    return Case("a", "a.png", findings, "train", boxes=boxes)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def seen(mask: np.ndarray, inside: float = 0.95, outside: float = 0.02) -> np.ndarray:
    """What a segmenter would give."""
    return np.where(mask, inside, outside).astype(np.float32)


def look(image: np.ndarray, of: Case, evidence: tuple[str, ...] = EVIDENCE, **options: object) -> FoundMask | Untrusted:
    keys = {name: options.pop(name) for name in ("min_confidence", "min_component") if name in options}
    limits = (options.pop("min_area", 0.001), options.pop("max_area", 0.6))
    wanted = MaskSettings(evidence=list(evidence), segmenter="run" if "segmenter" in evidence else None, **keys)
    return find_mask(image, of, options.pop("expert", None), wanted, *limits, **options)


LESION = disc(60, 64, 18)
IMAGE = picture(LESION)


def found(result: FoundMask | Untrusted) -> FoundMask:
    assert isinstance(result, FoundMask), result
    return result


def reason(result: FoundMask | Untrusted) -> str:
    assert isinstance(result, Untrusted), result
    return result.reason


def test_an_experts_mask_is_taken_as_it_is_before_all_other_evidence() -> None:
    expert = disc(30, 30, 10)
    expert[30, 30] = False
    result = found(look(IMAGE, case(box_of(LESION)), expert=expert, probability=seen(LESION)))
    assert np.array_equal(result.mask, expert) and (result.provenance, result.confidence) == ("expert", 1.0)


def test_an_experts_mask_is_not_used_where_the_recipe_does_not_want_it() -> None:
    result = found(look(IMAGE, case(box_of(LESION)), ("box",), expert=disc(30, 30, 10)))
    assert result.provenance == "box+grabcut" and dice(result.mask, LESION) > 0.9


@pytest.mark.parametrize(
    ("expert", "why"),
    [(np.zeros((SIDE, SIDE), bool), "empty mask"), (np.ones((SIDE, SIDE), bool), "full-frame mask"),
     (disc(64, 64, 2), "lesion smaller than min_area"), (disc(64, 64, 62), "lesion larger than max_area")],
)  # fmt: skip
def test_an_experts_mask_that_cannot_be_right_is_listed_and_nothing_else_is_asked(expert: np.ndarray, why: str) -> None:
    assert reason(look(IMAGE, case(), expert=expert, probability=seen(LESION))) == why


def test_the_segmenter_is_cut_to_the_box() -> None:
    both = LESION | disc(110, 110, 12)
    result = found(look(IMAGE, case(box_of(LESION)), probability=seen(both)))
    assert result.provenance == "box+segmenter" and np.array_equal(result.mask, LESION)


def test_grabcut_takes_over_where_the_segmenter_sees_too_little_of_the_box() -> None:
    result = found(look(IMAGE, case(box_of(LESION)), probability=seen(disc(60, 64, 5))))
    assert result.provenance == "box+grabcut" and dice(result.mask, LESION) > 0.9


def test_grabcut_takes_over_only_where_it_is_surer_than_an_unsure_segmenter() -> None:
    calm = look(IMAGE, case(box_of(LESION)), probability=seen(LESION), confidence_of=lambda p, m: 0.1)
    assert found(calm).provenance == "box+grabcut"
    sure = look(IMAGE, case(box_of(LESION)), probability=seen(LESION), confidence_of=lambda p, m: 0.6)
    assert (found(sure).provenance, found(sure).confidence) == ("box+segmenter", 0.6)


def test_grabcut_gives_the_same_mask_every_time() -> None:
    box = box_of(LESION)
    cv2.setRNGSeed(5)
    first = look(IMAGE, case(box), ("box",))
    cv2.setRNGSeed(77)
    np.testing.assert_array_equal(found(first).mask, found(look(IMAGE, case(box), ("box",))).mask)


def test_confidence_of_grabcut_falls_where_lesion_and_mucosa_look_alike() -> None:
    box = case(box_of(LESION))
    clear = found(look(IMAGE, box, ("box",), min_confidence=0.0))
    faint = look(picture(LESION, contrast=0), box, ("box",), min_confidence=0.0)
    assert clear.confidence > 0.7
    assert isinstance(faint, Untrusted) or faint.confidence < clear.confidence


def test_each_box_gets_its_own_lesion_and_the_least_trusted_names_the_mask() -> None:
    other = disc(100, 30, 12)
    image = picture(LESION, other)
    boxes = case(box_of(LESION), box_of(other))
    result = found(look(image, boxes, probability=seen(LESION), confidence_of=lambda p, m: 0.99))
    alone = found(look(image, case(box_of(other)), ("box",)))
    assert result.provenance == "box+grabcut" and result.confidence == min(0.99, alone.confidence)
    assert dice(result.mask, LESION | other) > 0.9
    both = seen(LESION | other)
    weaker = found(look(image, boxes, probability=both, confidence_of=lambda p, m: 0.7 if m[30, 100] else 0.9))
    assert (weaker.provenance, weaker.confidence) == ("box+segmenter", 0.7)
    assert np.array_equal(weaker.mask, LESION | other)


def test_one_box_without_a_lesion_fails_the_case() -> None:
    boxes = case(box_of(LESION), Box("polyp", 0, 0, 128, 20))
    image = IMAGE.copy()
    result = look(image, boxes, ("box",), min_confidence=0.9)
    assert reason(result) in (NOTHING_IN_BOX, UNSURE)


@pytest.mark.parametrize(
    ("box", "why"),
    [(Box("polyp", 130, 10, 150, 30), OUTSIDE), (Box("polyp", -30, 10, 0, 30), OUTSIDE),
     (Box("polyp", 50, 50, 50, 80), OUTSIDE), (Box("polyp", 0, 0, 128, 126), TOO_WIDE),
     (Box("polyp", -500, -500, 500, 500), TOO_WIDE)],
)  # fmt: skip
def test_boxes_that_say_nothing_are_listed(box: Box, why: str) -> None:
    assert reason(look(IMAGE, case(box), probability=seen(LESION))) == why


def test_a_box_that_leaves_the_image_is_cut_and_a_lesion_at_the_border_found() -> None:
    lesion = disc(4, 64, 22)
    box = box_of(lesion)
    beyond = Box("polyp", box.xmin - 18, box.ymin, box.xmax, box.ymax)
    result = found(look(picture(lesion), case(beyond), ("box",), min_confidence=0.2))
    assert dice(result.mask, lesion) > 0.8
    corner = disc(124, 124, 26)
    result = found(look(picture(corner), case(box_of(corner)), ("box",), min_confidence=0.2))
    assert dice(result.mask, corner) > 0.8


def test_a_finding_without_a_box_leaves_the_case_out() -> None:
    two = case(box_of(LESION), findings=("polyp", "erosion"))
    assert reason(look(IMAGE, two, probability=seen(LESION))) == WITHOUT_BOX
    assert isinstance(look(IMAGE, case(box_of(LESION, "polyps")), ("box",)), FoundMask)


def test_the_segmenter_alone_is_cleaned_up() -> None:
    probability = seen(LESION)
    probability[60:64, 58:62] = 0.1
    probability[5, 5:8] = 0.9
    result = found(look(IMAGE, case(), probability=probability, min_component=0.0003))
    assert result.provenance == "segmenter" and np.array_equal(result.mask, LESION)
    assert result.confidence == pytest.approx(promised_dice(probability, LESION))


def test_the_segmenter_alone_is_not_used_unless_the_recipe_allows_it() -> None:
    assert reason(look(IMAGE, case(), ("expert", "box"), probability=seen(LESION))) == NO_EVIDENCE


def test_a_segmenter_that_sees_nothing_or_is_unsure_is_listed() -> None:
    assert reason(look(IMAGE, case(), EVIDENCE[:3], probability=seen(LESION, 0.3))) == NOTHING_SEEN
    unsure = look(IMAGE, case(), EVIDENCE[:3], probability=seen(LESION), confidence_of=lambda p, m: 0.49)
    assert reason(unsure) == UNSURE
    large = look(IMAGE, case(), EVIDENCE[:3], probability=seen(disc(64, 64, 60)))
    assert reason(large) == "lesion larger than max_area"


def test_proposed_boxes_are_refined_only_where_the_segmenter_alone_gave_nothing() -> None:
    boxes = [box_of(LESION), Box("polyp", 500, 500, 600, 600)]
    assert found(look(IMAGE, case(), grounded=boxes)).provenance == "grounding+grabcut"
    refined = look(IMAGE, case(), probability=seen(LESION), grounded=boxes, confidence_of=lambda p, m: 0.7)
    assert found(refined).provenance == "segmenter"
    weak = look(IMAGE, case(), ("grounding",), probability=seen(LESION), grounded=boxes, confidence_of=lambda p, m: 0.8)
    assert (found(weak).provenance, found(weak).confidence) == ("grounding+segmenter", pytest.approx(0.6))
    assert reason(look(IMAGE, case(), grounded=[])) == NOTHING_PROPOSED
    assert reason(look(IMAGE, case(), probability=seen(LESION, 0.1), grounded=[])) == NOTHING_SEEN


def test_maps_of_another_size_are_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match="'a': found a mask of 20 x 10 pixels, wanted 128 x 128"):
        look(IMAGE, case(), expert=np.ones((10, 20), bool))
    with pytest.raises(ValueError, match="segmenter's map of 20 x 10"):
        look(IMAGE, case(), probability=np.ones((10, 20), np.float32))


def test_promised_dice_is_the_expected_one_for_certain_maps() -> None:
    assert promised_dice(LESION.astype(np.float32), LESION) == pytest.approx(1.0)
    assert promised_dice(np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)) == 0.0
    half = np.where(LESION, 0.5, 0.0).astype(np.float32)
    assert promised_dice(half, LESION) == pytest.approx(2 / 3, rel=1e-5)


def test_plausibility_is_highest_for_a_lesion_that_fills_its_box_as_lesions_do() -> None:
    window = (30, 30, 90, 90)
    good = disc(59.5, 59.5, 28)
    assert shape_plausibility(good, window) > 0.8
    assert shape_plausibility(disc(50, 50, 10), window) < 0.1
    assert shape_plausibility(np.ones((SIDE, SIDE), bool), window) < 0.2
    assert shape_plausibility(np.zeros((SIDE, SIDE), bool), window) == 0.0


@settings(max_examples=15, deadline=None)
@given(
    x=st.integers(-20, 130),
    y=st.integers(-20, 130),
    width=st.integers(1, 140),
    height=st.integers(1, 140),
)
def test_any_box_gives_a_mask_inside_it_or_a_reason_without_numbers(x: int, y: int, width: int, height: int) -> None:
    box = Box("polyp", x, y, x + width, y + height)
    result = look(IMAGE, case(box), ("box",), min_confidence=0.0, min_area=0.0)
    if isinstance(result, Untrusted):
        assert result.reason and not any(letter.isdigit() for letter in result.reason)
        return
    assert result.mask.shape == IMAGE.shape[:2] and result.mask.any() and 0 <= result.confidence <= 1
    outside = result.mask.copy()
    outside[max(0, y) : y + height, max(0, x) : x + width] = False
    assert not outside.any()


def test_the_smallest_box_does_not_break_grabcut() -> None:
    for window in ((10, 10, 11, 11), (0, 0, 2, 1), (126, 126, 128, 128)):
        outline = cut_out(IMAGE, window)
        assert outline is None or 0 <= outline.stability <= 1
