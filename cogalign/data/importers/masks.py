"""Masks of the data sets as bool arrays by class, and as the PNG of a case set."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cogalign.data.images import THRESHOLD, decode, load_mask
from cogalign.data.importers.base import RawMask


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
    image = np.asarray(decode(path).image).astype(np.int32)
    bright = (image[..., 0] > THRESHOLD) | (image[..., 1] > THRESHOLD) | (image[..., 2] > THRESHOLD)
    pixels = image[bright]
    distances = [((pixels - np.array(colour)) ** 2).sum(axis=1) for colour in colours.values()]
    nearest = np.argmin(distances, axis=0) if len(pixels) else np.zeros(0, dtype=np.int64)
    found = {}
    for index, name in enumerate(colours):
        part = np.zeros(bright.shape, dtype=bool)
        part[bright] = nearest == index
        found[name] = part
    return found


def _by_value(path: Path, values: dict[str, str]) -> dict[str, np.ndarray]:
    """Pixels by their grey value or palette index."""
    decoded = decode(path)
    if decoded.lossy:
        raise ValueError(f"{path}: a JPEG does not keep the values of a mask")
    with Image.open(path) as opened:
        grey = np.asarray(opened) if opened.mode in ("L", "P", "1") else np.asarray(decoded.image.convert("L"))
    numbers = {int(value): name for value, name in values.items()}
    unknown = sorted(set(np.unique(grey).tolist()) - set(numbers) - {0})
    if unknown:
        raise ValueError(f"{path}: found the value {unknown[0]}, wanted one of {sorted(numbers)}")
    return {name: grey == number for number, name in numbers.items() if number}


def mask_png(mask: np.ndarray) -> bytes:
    """A bool array (height, width) as a PNG of one channel of 8 bits: 255 where it is True, 0 elsewhere.

    Each row is stored as the difference to the row above (PNG filter 2), so that nearly all is zero, and packed by run
    lengths: a third of the time that general libraries take, and a smaller file.
    """
    values = mask.view(np.uint8)
    height, width = values.shape
    rows = np.empty((height, width + 1), dtype=np.uint8)
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])
    rows[0, 1:] = values[0]
    rows *= np.uint8(255)  # 1 becomes 255, and -1 (stored as 255) becomes 1, which is -255
    rows[:, 0] = 2
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = packer.compress(rows.data) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
