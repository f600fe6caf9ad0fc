"""Masks of the data sets as bool arrays by class, and as the PNG of a case set."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cogalign.data.images import THRESHOLD, decode, load_mask, open_image
from cogalign.data.importers.base import RawMask

_ROWS = 64
"""Rows of a coloured mask whose distances to the colours are in memory at once."""


def class_masks(mask: RawMask) -> dict[str, np.ndarray]:
    """Bool arrays (height, width) by the data set's own class name; `""` where the mask has no classes.

    Classes without a pixel are left out, except `""`.

    Raises:
        FileNotFoundError, ValueError: as `load_mask`; files that differ in size; a value or class that has no name.
    """
    found: dict[str, np.ndarray] = {}
    for path, label in mask.files:
        for name, part in _of_file(path, label, mask).items():
            if name in found and found[name].shape != part.shape:
                raise ValueError(f"{path.name}: its mask has another size than the image's other masks")
            found[name] = found[name] | part if name in found else part
    return {name: part for name, part in found.items() if not name or part.any()}


def _of_file(path: Path, label: str, mask: RawMask) -> dict[str, np.ndarray]:
    if mask.rule.kind == "colours":
        return _by_colour(path, mask.rule.colours)
    if mask.rule.kind == "values":
        return _by_value(path, mask.rule.values)
    return {label: load_mask(path)}


def _by_colour(path: Path, colours: dict[str, tuple[int, int, int]]) -> dict[str, np.ndarray]:
    """Pixels with a channel above 127 belong to the nearest colour: JPEG mixes colours at their edges."""
    image = np.asarray(decode(path).image)
    found = {name: np.zeros(image.shape[:2], dtype=bool) for name in colours}
    for top in range(0, len(image), _ROWS):
        rows = slice(top, top + _ROWS)
        above = image[rows] > THRESHOLD
        bright = above[..., 0] | above[..., 1] | above[..., 2]
        nearest = _nearest(image[rows][bright], list(colours.values()))
        for index, part in enumerate(found.values()):
            part[rows][bright] = nearest == index
    return found


def _nearest(pixels: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Index of the nearest colour (squared distance) for each of n pixels (n, 3; uint8); of equal ones the first."""
    levels = np.arange(256, dtype=np.int32)
    nearest = np.zeros(len(pixels), dtype=np.uint8)
    least = np.full(len(pixels), 3 * 255**2 + 1, dtype=np.int32)
    for index, colour in enumerate(colours):
        red, green, blue = ((levels - value) ** 2 for value in colour)
        distance = red[pixels[:, 0]] + green[pixels[:, 1]] + blue[pixels[:, 2]]
        nearest[distance < least] = index
        np.minimum(least, distance, out=least)
    return nearest


def _by_value(path: Path, values: dict[str, str]) -> dict[str, np.ndarray]:
    """Pixels by their grey value or palette index."""
    decoded = decode(path)
    if decoded.lossy:
        raise ValueError(f"{path}: a JPEG does not keep the values of a mask")
    with open_image(path) as opened:
        grey = np.asarray(opened) if opened.mode in ("L", "P", "1") else np.asarray(decoded.image.convert("L"))
    numbers = {int(value): name for value, name in values.items()}
    unknown = sorted(set(np.unique(grey).tolist()) - set(numbers) - {0})
    if unknown:
        raise ValueError(f"{path}: found the value {unknown[0]}, wanted one of {sorted(numbers)}")
    return {name: grey == number for number, name in numbers.items() if number}


_DOUBLED = np.array(
    [sum(3 << (2 * bit) for bit in range(8) if value >> bit & 1) for value in range(256)], dtype=np.dtype(">u2")
)
"""Eight pixels of one bit as eight of two bits: 0 or 3."""


def mask_png(mask: np.ndarray) -> bytes:
    """A bool array (height, width) as a PNG of one grey channel: 255 where it is True, 0 elsewhere.

    A pixel takes two bits, which every reader makes 8 (of one bit some make booleans). Each row is stored as the difference to
    the row above (PNG filter 2), so that nearly all is zero, and packed by run lengths: an eighth of the time that
    general libraries take, and a smaller file.
    """
    height, width = mask.shape
    packed_rows = _DOUBLED[np.ascontiguousarray(np.packbits(mask, axis=1))].view(np.uint8)[:, : -(-width // 4)]
    rows = np.empty((height, packed_rows.shape[1] + 1), dtype=np.uint8)
    np.subtract(packed_rows[1:], packed_rows[:-1], out=rows[1:, 1:])
    rows[0, 1:] = packed_rows[0]
    rows[:, 0] = 2
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 2, 0, 0, 0, 0)
    packed = packer.compress(rows.data) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
