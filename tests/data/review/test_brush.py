import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from cogalign.data.review.brush import decode, encode, unpack

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))

PEAK = [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 4, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1]
THOUSAND = [0] * 512 + PEAK + [0] * (512 - len(PEAK))
# Byte sequences of the tests of rle-pack (thi.ng/umbrella; 3-bit words, two choices of run lengths) and of
# label-studio-converter (runs of one).
KNOWN = [
    ([0, 0, 4, 0, 17, 27, 255, 1, 255, 18, 24, 212, 78, 24, 5, 134, 68, 227, 82, 30, 3, 196, 0], THOUSAND),
    ([0, 0, 4, 0, 16, 9, 199, 255, 140, 134, 234, 206, 96, 89, 150, 119, 89, 15, 241, 0], THOUSAND),
    (
        [0, 0, 0, 18, 57, 27, 252, 96, 32, 1, 0, 6, 0, 40, 0, 192, 3, 128, 17, 56, 32],
        [1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 4, 4, 4, 4, 4, 4, 4, 4],
    ),
]


@pytest.mark.parametrize(("packed", "values"), KNOWN)
def test_reads_what_the_original_encoders_write(packed: list[int], values: list[int]) -> None:
    assert unpack(packed, len(values)).tolist() == values


def test_writes_what_label_studio_converter_writes() -> None:
    mask = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
    # `mask2rle` of label-studio-converter 0.0.59 for this mask.
    assert encode(mask) == [0, 0, 0, 48, 57, 27, 252, 96, 19, 255, 198, 1, 63, 254, 19, 0, 143, 252]


@settings(max_examples=100, deadline=None)
@given(masks)
def test_a_mask_comes_back(mask: np.ndarray) -> None:
    packed = encode(mask)
    assert all(0 <= byte <= 255 for byte in packed)
    assert np.array_equal(decode(packed, *mask.shape), mask)


@pytest.mark.parametrize("value", [False, True])
def test_a_run_longer_than_the_largest_size_is_split(value: bool) -> None:
    mask = np.full((300, 200), value)
    mask[150, 100] = not value
    packed = encode(mask)
    assert len(packed) < 60
    assert np.array_equal(decode(packed, 300, 200), mask)


def test_single_values_that_differ_are_read_one_by_one() -> None:
    # Two chunks: 4 single values, then 4 repeated ones; only the last channel counts.
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += (
        "0"
        + "00"
        + f"{3:03b}"
        + "".join(f"{value:08b}" for value in (255, 0, 0, 7))
        + "1"
        + "00"
        + f"{3:03b}"
        + f"{0:08b}"
    )
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert decode(packed, 1, 2).tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ([0, 0, 0, 16], "ends after 4 bytes"),
        (encode(np.ones((2, 3), dtype=bool)), "holds 24 values, wanted 16"),
        (encode(np.eye(2, dtype=bool))[:-2], "ends after"),
        ([0, 0, 0, 256], "from 0 to 255"),
        (["0"], "from 0 to 255"),
        ([255] * 40, "holds 4294967295 values, wanted 16"),
    ],
)
def test_damaged_bytes_are_refused_before_memory_is_taken(packed: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(packed, 2, 2)
