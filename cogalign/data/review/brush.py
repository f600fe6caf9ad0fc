"""Label Studio's brush masks: a bit-packed run-length encoding of RGBA values.

Layout (rle-pack of thi.ng/umbrella, which Label Studio uses), most significant bit first: 32 bits number of values;
5 bits word size - 1; four times 4 bits: sizes of run lengths - 1; then chunks of 1 bit (1: one value repeated,
0: as many single values), 2 bits which of the four sizes, the length - 1 in so many bits, the value or values.
The values are the canvas' pixels row by row, four channels each; the mask is in the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cogalign.data.review.rle import Mask

WORD = 8
SIZES = (3, 4, 8, 16)
"""Bits of the four kinds of run lengths that Label Studio writes."""
CHANNELS = 4
_HEADER = 32 + 5 + 4 * 4


def encode(mask: Mask) -> list[int]:
    """The bytes of a brush mask, as `value.rle` holds them.

    Args:
        mask: H x W; lesion is 255 in all four channels, the rest 0.
    """
    flat = np.asarray(mask, dtype=bool).ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{flat.size * CHANNELS:032b}", f"{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        bits += _run((end - start) * CHANNELS, 255 if flat[start] else 0)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _run(length: int, value: int) -> Iterator[str]:
    """The chunks of one run: the smallest size that holds it, split where even the largest does not."""
    while length > 0:
        part = min(length, 1 << SIZES[-1])
        kind = next(index for index, size in enumerate(SIZES) if part <= 1 << size)
        yield f"1{kind:02b}{part - 1:0{SIZES[kind]}b}{value:0{WORD}b}"
        length -= part


def decode(rle: Sequence[int], height: int, width: int) -> Mask:
    """The mask of a brush region, H x W: where the last channel is not 0.

    Args:
        rle: bytes as `value.rle` holds them.
        height: rows of the image.
        width: columns of the image.

    Raises:
        ValueError: the numbers are no bytes, belong to another size, or end too early.
    """
    values = unpack(rle, height * width * CHANNELS)
    mask: Mask = values.reshape(height, width, CHANNELS)[..., -1] > 0
    return mask


def unpack(rle: Sequence[int], wanted: int) -> NDArray[np.uint8]:
    """The values of a bit-packed run-length encoding.

    Args:
        rle: bytes.
        wanted: number of values that there must be; checked before memory is taken.

    Raises:
        ValueError: the numbers are no bytes, say another number of values, or end too early.
    """
    if any(not isinstance(byte, int) or isinstance(byte, bool) or not 0 <= byte <= 255 for byte in rle):
        raise ValueError("rle: wanted whole numbers from 0 to 255")
    bits = _Bits(bytes(rle))
    number = bits.read(32)
    if number != wanted:
        raise ValueError(f"rle: holds {number} values, wanted {wanted} (height x width x {CHANNELS})")
    word = bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    if word > 8:
        raise ValueError(f"rle: values of {word} bits, wanted at most 8")
    out = np.zeros(number, dtype=np.uint8)
    position = 0
    while position < number:
        repeated = bits.read(1)
        length = bits.read(sizes[bits.read(2)]) + 1
        end = min(position + length, number)
        if repeated:
            out[position:end] = bits.read(word)
        else:
            for index in range(position, end):
                out[index] = bits.read(word)
        position = end
    return out


class _Bits:
    """Reads whole numbers from bytes, bit by bit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, size: int) -> int:
        """The next `size` bits as a number."""
        end = self._position + size
        if end > 8 * len(self._data):
            raise ValueError(f"rle: ends after {len(self._data)} bytes, before all values were there")
        covering = int.from_bytes(self._data[self._position // 8 : (end + 7) // 8], "big")
        self._position = end
        return (covering >> (-end % 8)) & ((1 << size) - 1)
