import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cogalign.data.case import Box, Case
from cogalign.data.review.lesions import Lesion, Refined, finding_of, lesions_of, without_refined
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
