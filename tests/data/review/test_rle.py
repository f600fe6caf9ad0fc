import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from cogalign.data.review.rle import Rle, decompress

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))

SMALL = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
STRIPES = np.tile(np.arange(40)[None] % 7 < 3, (50, 1))
# Strings that pycocotools 2.0.10 writes for these masks.
KNOWN = [(SMALL, "11110O30"), (STRIPES, "0f4X6000000000lL")]
# Counts of several characters and differences of either sign.
COUNTS = [
    ([], ""),
    ([12], "<"),
    ([3, 1, 3, 1, 3], "31300"),
    ([5, 3, 1, 2], "531O"),
    ([0, 100_000, 7, 2**40, 1, 0], "0PeQ37P[nloooo0JPPPPPPPPO"),
]


@settings(max_examples=100, deadline=None)
@given(masks)
def test_a_mask_comes_back_from_its_runs(mask: np.ndarray) -> None:
    rle = Rle.from_mask(mask)
    assert sum(rle.counts) == mask.size and rle.area == mask.sum()
    assert np.array_equal(rle.mask(), mask)
    assert Rle.from_counts(list(rle.counts), *mask.shape) == rle


@pytest.mark.parametrize(("counts", "text"), COUNTS)
def test_reads_compressed_counts_of_any_length_and_sign(counts: list[int], text: str) -> None:
    assert decompress(text) == counts


@pytest.mark.parametrize(("mask", "text"), KNOWN)
def test_reads_the_strings_of_pycocotools(mask: np.ndarray, text: str) -> None:
    assert np.array_equal(Rle.from_counts(text, *mask.shape).mask(), mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5, 6], "add up to 11, wanted 3 x 4 = 12"),
        ([13, -1], "-1"),
        ([6.0, 6], "6.0"),
        ("1111 O30", "' '"),
        ("11110O3P", "middle of a number"),
        ("o" * 200, "damaged"),
        ("9999", "add up to"),
    ],
)
def test_damaged_counts_are_refused(counts: list[int] | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rle.from_counts(counts, 3, 4)
