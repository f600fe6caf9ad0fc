import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cogalign.data.review.rle import Rle, compress, decompress

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))

SMALL = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
STRIPES = np.tile(np.arange(40)[None] % 7 < 3, (50, 1))
# Strings that pycocotools 2.0.10 writes for these masks.
KNOWN = [(SMALL, "11110O30"), (STRIPES, "0f4X6000000000lL")]


@settings(max_examples=100, deadline=None)
@given(masks)
def test_a_mask_comes_back_from_its_runs(mask: np.ndarray) -> None:
    rle = Rle.from_mask(mask)
    assert sum(rle.counts) == mask.size and rle.area == mask.sum()
    assert np.array_equal(rle.mask(), mask)
    again = Rle.from_counts(compress(rle.counts), *mask.shape)
    assert again == rle == Rle.from_counts(list(rle.counts), *mask.shape)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**40)))
def test_any_counts_come_back_from_the_compressed_string(counts: list[int]) -> None:
    assert decompress(compress(counts)) == counts


@pytest.mark.parametrize(("mask", "text"), KNOWN)
def test_reads_and_writes_the_strings_of_pycocotools(mask: np.ndarray, text: str) -> None:
    assert compress(Rle.from_mask(mask).counts) == text
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
