"""COCO's run-length encoding of masks: plain counts and the compressed string.

The mask is read column by column; the counts are the lengths of the runs, beginning with pixels that are not lesion.
Format: COCO data format and its reference code (Lin et al., Microsoft COCO, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_OFFSET = 48
"""The first character of a compressed string's alphabet: '0'."""
_MORE = 0x20
_SIGN = 0x10
_LONGEST = 13
"""Groups of five bits that a count may take: 64 bits and their sign."""


@dataclass(frozen=True)
class Rle:
    """A mask as run lengths: small enough to keep those of a whole file in memory.

    Args:
        counts: lengths of the runs in column order, beginning with False.
        height: rows of the mask.
        width: columns of the mask.
    """

    counts: tuple[int, ...]
    height: int
    width: int

    @classmethod
    def from_mask(cls, mask: Mask) -> Rle:
        """The runs of a mask H x W."""
        flat = np.asarray(mask, dtype=bool).ravel(order="F")
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        edges = np.concatenate([[0], changes, [flat.size]])
        counts = np.diff(edges).tolist()
        if flat.size and flat[0]:
            counts.insert(0, 0)
        return cls(tuple(counts), int(mask.shape[0]), int(mask.shape[1]))

    @classmethod
    def from_counts(cls, counts: Sequence[int] | str, height: int, width: int) -> Rle:
        """Run lengths from a file: a list of whole numbers, or a compressed string.

        Raises:
            ValueError: a count is no whole number or negative, the string is damaged, or the counts do not add up
                to `height` x `width`.
        """
        values = decompress(counts) if isinstance(counts, str) else list(counts)
        wrong = [count for count in values if not isinstance(count, int) or isinstance(count, bool) or count < 0]
        if wrong:
            raise ValueError(f"counts: found {wrong[0]!r}, wanted whole numbers that are not negative")
        if sum(values) != height * width:
            raise ValueError(f"counts: they add up to {sum(values)}, wanted {height} x {width} = {height * width}")
        return cls(tuple(values), height, width)

    @property
    def area(self) -> int:
        """Pixels of the lesion."""
        return sum(self.counts[1::2])

    def mask(self) -> Mask:
        """The mask, H x W."""
        values = np.arange(len(self.counts)) % 2 == 1
        flat = np.repeat(values, self.counts)
        return flat.reshape((self.height, self.width), order="F")


def decompress(text: str) -> list[int]:
    """The run lengths of a compressed string, as COCO's `counts`.

    From the fourth on, a count is written as its difference to the one two before; five bits a character, the
    lowest first, the sixth bit says that more follow, the last group's highest bit is the sign.

    Raises:
        ValueError: a character is not of the alphabet, or the string ends in the middle of a count.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        group = ord(character) - _OFFSET
        if not 0 <= group < 0x40 or shift >= 5 * _LONGEST:
            raise ValueError(f"counts: found {character!r} in a compressed string, which is damaged")
        value |= (group & 0x1F) << shift
        shift += 5
        if group & _MORE:
            continue
        if group & _SIGN:
            value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("counts: the compressed string ends in the middle of a number")
    return counts
