"""What is burned into an endoscopic image: letters, and boxes in a corner (scope guide, black mask).

A model can learn such an overlay in place of the finding, since it tells the processor, the clinic or the year.
Classical image processing, measured on hand-labelled photographs in `tests/data/test_overlays.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Box4 = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax in pixels; the maxima are exclusive."""
Image = NDArray[np.uint8]

WORK_SIDE = 640
"""Longest side in pixels to which an image is brought before letters are looked for."""
STROKE = 13
"""Letters are made of strokes thinner than this, in pixels of the work image."""
MIN_RISE, MIN_WHITE = 26, 70
"""A stroke is so many grey levels above its surroundings, and its darkest channel at least so bright."""
GLYPH_HEIGHTS = (6, 24)
"""Heights of a letter in pixels of the work image."""
MIN_GLYPHS = 4
"""So many letters of one height in a row are a line of text."""
BLACK = 20
"""A black box has no channel above this."""


@dataclass(frozen=True)
class Overlays:
    """What was found in an image, in its own pixels."""

    text: tuple[Box4, ...] = ()
    """Lines of letters or form fields, from the top."""
    guide_box: tuple[Box4, ...] = ()
    """Coloured pictures and black masks in the corners."""


def find_overlays(image: Image) -> Overlays:
    """Burned-in letters and corner boxes of an image.

    Args:
        image: (height, width, 3) uint8, RGB.

    Returns:
        Boxes in pixels of the image; none for images of less than 32 pixels a side.
    """
    height, width = image.shape[:2]
    if min(height, width) < 32:
        return Overlays()
    scale = WORK_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    work = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    text = [_back(box, scale, width, height) for box in text_lines(work)]
    boxes = [_back(box, scale, width, height) for box in (*coloured_boxes(work), *black_boxes(work))]
    return Overlays(tuple(sorted(text, key=lambda box: box[1])), tuple(boxes))


def text_lines(work: Image) -> list[Box4]:
    """Lines of letters of a work image: thin, bright, colourless strokes of one height side by side."""
    red, green, blue = cv2.split(work)
    white = cv2.min(cv2.min(red, green), blue)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (STROKE, STROKE))
    rise = cv2.morphologyEx(white, cv2.MORPH_TOPHAT, kernel)
    bright = (rise >= MIN_RISE) & (white >= MIN_WHITE)
    # Blurred letters touch at their feet: half of the nearest peak parts them, but cuts faint ones.
    parted = bright & (rise >= cv2.dilate(rise, kernel) // 2)
    lines: list[Box4] = []
    short: list[Box4] = []
    for strokes in (bright, parted):
        glyphs = _glyphs(strokes)
        for chain in _chains(glyphs):
            if len(chain) >= MIN_GLYPHS:
                lines.append(_around(chain))
            elif len(chain) == MIN_GLYPHS - 1:
                short.append(_around(chain))
    block = [box for box in short if any(_belongs(box, other) for other in (*lines, *short))]
    return _without_inner(lines + block)


def _glyphs(strokes: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Boxes (n, 4) of connected strokes that have the height and shape of a letter."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(strokes.astype(np.uint8), connectivity=8, ltype=cv2.CV_16U)
    x, y, wide, high, area = stats[1:].T
    low, top = GLYPH_HEIGHTS
    fits = (high >= low) & (high <= top) & (wide >= 2) & (wide <= 1.4 * high) & (area >= 0.2 * wide * high)
    return np.stack((x, y, x + wide, y + high), axis=1)[fits]


def _without_inner(boxes: list[Box4]) -> list[Box4]:
    """Boxes of which not more than half lies in a larger one of them."""
    kept: list[Box4] = []
    for box in sorted(set(boxes), key=lambda b: (b[0] - b[2]) * (b[3] - b[1])):
        area = (box[2] - box[0]) * (box[3] - box[1])
        shared = (
            max(0, min(box[2], k[2]) - max(box[0], k[0])) * max(0, min(box[3], k[3]) - max(box[1], k[1])) for k in kept
        )
        if all(part <= area / 2 for part in shared):
            kept.append(box)
    return kept


def _belongs(one: Box4, other: Box4) -> bool:
    """Whether two lines are of one block: letters of about the same height, one line under the other."""
    high, its = one[3] - one[1], other[3] - other[1]
    apart = max(one[1], other[1]) - min(one[3], other[3])
    return 0.75 <= high / its <= 1.34 and 0 <= apart <= 8 * high and abs(one[0] - other[0]) <= 6 * high


def _chains(glyphs: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Glyphs that stand side by side: tops and bottoms level, gaps below one height and a third."""
    glyphs = glyphs[np.argsort(glyphs[:, 0], kind="stable")]
    left, top, right, bottom = glyphs.T
    high = bottom - top
    chain = list(range(len(glyphs)))
    for index in range(len(glyphs) - 1):
        reach = int(np.searchsorted(left, right[index] + 1.3 * high[index], side="right"))
        others = slice(index + 1, reach)
        slack = np.maximum(1.5, 0.16 * np.minimum(high[others], high[index]))
        level = (np.abs(top[others] - top[index]) <= slack) & (np.abs(bottom[others] - bottom[index]) <= slack)
        for other in (np.flatnonzero(level & (left[others] >= right[index] - 1)) + index + 1).tolist():
            old, new = chain[other], chain[index]
            if old != new:
                chain = [new if value == old else value for value in chain]
    members: dict[int, list[int]] = {}
    for index, number in enumerate(chain):
        members.setdefault(number, []).append(index)
    return [glyphs[places] for places in members.values()]


def _around(glyphs: NDArray[np.int32]) -> Box4:
    """The box around glyphs."""
    low, high = glyphs.min(axis=0), glyphs.max(axis=0)
    return int(low[0]), int(low[1]), int(high[2]), int(high[3])


def coloured_boxes(work: Image) -> list[Box4]:
    """Boxes of one flat colour that is not red, near a corner of the work image."""
    red, green, blue = cv2.split(work)
    bright = cv2.max(green, blue)
    colour = cv2.subtract(bright, cv2.min(cv2.min(red, green), blue))
    coloured = (bright >= 60) & (colour >= 40) & (cv2.subtract(bright, red) >= 25)
    found: list[Box4] = []
    for shade in (coloured & (green >= blue), coloured & (green < blue)):
        if np.count_nonzero(shade) >= 0.003 * shade.size:
            found.extend(_flat_rectangles(work, shade))
    return found


def _flat_rectangles(work: Image, coloured: NDArray[np.bool_]) -> list[Box4]:
    """Connected pieces of a mask that are rectangles of one colour near a corner."""
    height, width = coloured.shape
    mask = cv2.morphologyEx(coloured.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    found = []
    for label in range(1, count):
        left, top, wide, high, area = (int(value) for value in stats[label])
        if wide < 0.04 * width or high < 0.08 * height or max(wide / width, high / height) > 0.7:
            continue
        if area < 0.7 * wide * high or not _in_corner(left, top, wide, high, width, height):
            continue
        window = (slice(top, top + high), slice(left, left + wide))
        pixels = work[window][labels[window] == label].astype(np.int16)
        if (np.abs(pixels - np.median(pixels, axis=0)).max(axis=1) <= 16).mean() >= 0.6:
            found.append((left, top, left + wide, top + high))
    return found


def _in_corner(left: int, top: int, wide: int, high: int, width: int, height: int) -> bool:
    """Whether a box is nearer to a corner than a sixth of each side."""
    beside = min(left, width - left - wide) <= width / 6
    return beside and min(top, height - top - high) <= height / 6


def black_boxes(work: Image) -> list[Box4]:
    """Black rectangles in the corners of the work image, other than the slanted corners of the field."""
    red, green, blue = cv2.split(work)
    dark = (cv2.max(cv2.max(red, green), blue) <= BLACK).astype(np.uint8)
    # Letters on black would break it.
    black = cv2.morphologyEx(dark, cv2.MORPH_CLOSE, np.ones((STROKE, STROKE), np.uint8)) > 0
    height, width = black.shape
    found = []
    for flip_y in (True, False):
        for flip_x in (False, True):
            seen = black[::-1] if flip_y else black
            seen = seen[:, ::-1] if flip_x else seen
            size = _corner_rectangle(seen)
            if size is not None:
                wide, high = size
                left, top = (width - wide if flip_x else 0), (height - high if flip_y else 0)
                found.append((left, top, left + wide, top + high))
    return found


def _corner_rectangle(black: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Width and height of a black rectangle in the corner (0, 0), or None.

    The black run from the left is as long in many rows, and then is suddenly much shorter; that of a slanted corner
    becomes shorter from row to row.
    """
    height, width = black.shape
    rows = black[: height // 2]
    run = np.where(rows.all(axis=1), width, np.argmin(rows, axis=1)).astype(np.int64)
    steady, least, jump = round(0.05 * height), round(0.06 * width), 4
    drops = np.flatnonzero(run[:-jump] - run[jump:] >= least // 2)
    for end in drops[drops >= steady].tolist():
        long = int(np.median(run[end - steady : end]))
        if not least <= long <= 0.5 * width:
            continue
        level = np.abs(run[end - steady : end] - long) <= 3
        after = run[end + jump - 2 : end + jump + 1]
        if level.mean() >= 0.8 and after.max() <= long - max(least / 2, 0.25 * long):
            return long, end
    return None


def _back(box: Box4, scale: float, width: int, height: int) -> Box4:
    """A box of the work image in pixels of the image."""
    left, top, right, bottom = (value / scale for value in box)
    return max(0, int(left)), max(0, int(top)), min(width, -int(-right // 1)), min(height, -int(-bottom // 1))
