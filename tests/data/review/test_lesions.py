import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cogalign.data.case import Box, Case
from cogalign.data.review.lesions import Lesion, Refined, complete_mask, finding_of, lesions_of, without_refined
from cogalign.data.review.rle import Rle

SHAPE = (14, 18)
boxes = st.tuples(st.integers(0, 12), st.integers(0, 8), st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: Box("polyp", b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def a_case(*boxes: Box, findings: tuple[str, ...] = ("polyp", "erosion")) -> Case:
    return Case(id="a", file_name="images/a.png", findings=findings, split="train", boxes=boxes)


@settings(max_examples=80, deadline=None)
@given(arrays(bool, SHAPE), st.lists(boxes, max_size=3))
def test_the_lesions_share_the_mask_out_without_rest_or_overlap(mask: np.ndarray, boxes: list[Box]) -> None:
    lesions = lesions_of(a_case(*boxes), mask)
    total = np.zeros(SHAPE, dtype=int)
    for lesion in lesions:
        if lesion.region is not None:
            total += lesion.region.mask()
    assert np.array_equal(total, mask.astype(int))
    assert len(lesions) >= len(boxes)


def test_touching_lesions_are_divided_between_their_boxes() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:8, 1:16] = True
    first, second = lesions_of(a_case(Box("polyp", 1, 2, 7, 8), Box("erosion", 7, 2, 16, 8)), mask)
    assert (first.finding, first.box) == ("polyp", (1, 2, 7, 8))
    assert (second.finding, second.box) == ("erosion", (7, 2, 16, 8))


def test_a_part_without_a_box_has_the_only_finding_or_none() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:3, 1:3] = True
    assert [lesion.finding for lesion in lesions_of(a_case(findings=("polyp",)), mask)] == ["polyp"]
    assert [lesion.finding for lesion in lesions_of(a_case(), mask)] == [""]


def test_a_region_takes_the_place_of_the_box_that_it_overlaps() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:5, 2:5] = True
    region = Lesion("polyp", (2, 2, 5, 5), Rle.from_mask(mask))
    same, other, far = Lesion("polyp", (1, 1, 6, 6)), Lesion("erosion", (1, 1, 6, 6)), Lesion("polyp", (9, 9, 12, 12))
    assert without_refined([same, other, region, far]) == [other, region, far]


def region(rows: slice, columns: slice) -> Lesion:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[rows, columns] = True
    return Lesion("polyp", (columns.start, rows.start, columns.stop, rows.stop), Rle.from_mask(mask))


def test_a_box_that_a_region_barely_touches_or_that_lies_around_a_nearer_one_is_another_lesions() -> None:
    drawn = region(slice(2, 8), slice(2, 8))
    own, grazed = Lesion("polyp", (1, 1, 8, 8)), Lesion("polyp", (7, 2, 14, 9))
    assert without_refined([own, grazed, drawn]) == [grazed, drawn]
    around = Lesion("polyp", (0, 0, 17, 13))
    assert without_refined([own, around, drawn]) == [around, drawn]


def test_one_region_may_cover_several_boxes() -> None:
    drawn = region(slice(1, 9), slice(1, 16))
    assert without_refined([Lesion("polyp", (1, 1, 8, 9)), Lesion("polyp", (9, 2, 16, 8)), drawn]) == [drawn]


def test_a_lesion_without_outline_keeps_the_old_mask_in_its_box() -> None:
    drawn, bare = region(slice(1, 4), slice(1, 4)), Lesion("polyp", (8, 8, 14, 12))
    old = np.zeros(SHAPE, dtype=bool)
    old[9:14, 9:12] = True
    old[1:3, 1:8] = True
    expected = np.zeros(SHAPE, dtype=bool)
    expected[1:4, 1:4] = True
    expected[9:12, 9:12] = True
    assert np.array_equal(complete_mask(Refined("a", (drawn, bare)), old), expected)


@pytest.mark.parametrize("old", [None, np.zeros(SHAPE, dtype=bool), np.eye(*SHAPE, dtype=bool)])
def test_a_lesion_without_outline_or_old_mask_of_its_own_is_refused(old: np.ndarray | None) -> None:
    # The last of the old masks has pixels in the box, but the region covers them.
    drawn, bare = region(slice(1, 9), slice(1, 9)), Lesion("polyp", (7, 2, 14, 9))
    with pytest.raises(ValueError, match=r"case 'a': the polyp in box 7, 2 to 14, 9 .*: outline it or delete it"):
        complete_mask(Refined("a", (drawn, bare)), old)


def test_boxes_alone_are_no_whole_mask() -> None:
    with pytest.raises(ValueError, match="case 'a': found boxes only"):
        complete_mask(Refined("a", (Lesion("polyp", (1, 1, 2, 2)),)), None)


def test_only_findings_of_the_case_are_taken() -> None:
    assert finding_of("Polyps", a_case()) == "polyp"
    assert finding_of("lesion", a_case()) == "" and finding_of("lesion", a_case(findings=("polyp",))) == "polyp"
    with pytest.raises(ValueError, match="not in the taxonomy; nearest: 'polyp'"):
        finding_of("pollyp", a_case())
    with pytest.raises(ValueError, match="wanted one of the case's findings: polyp, erosion"):
        finding_of("ulcer", a_case())
    with pytest.raises(ValueError, match="wanted one of the case's findings: normal"):
        finding_of("normal", a_case(findings=("normal",)))


def test_boxes_alone_make_no_mask() -> None:
    assert Refined("a", (Lesion("polyp", (1, 1, 2, 2)),)).mask() is None
