"""Whether one thumbnail is a part of another one: the same photograph without its frame, or with another crop.

Kvasir-SEG shows photographs of Kvasir v2 without their black frame; another crop moves every grey value of a thumbnail
and most bits of its hash. So the visible field is cut out first, then one field is laid on the other.

All frames of a capsule share black corners and light that falls off towards them: that alone makes two different frames
correlate. So a smooth surface (a quadratic one, fitted inside a disc without the corners) is taken out of a field, and
what is left, its detail, must agree too.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MIN_ALIGNED = 0.9
"""Fields are one photograph when they correlate at least so well once one is laid on the other ..."""
MIN_DETAIL_ALIGNED = 0.95
"""... and what they hold beside a smooth surface at least so well."""
MIN_CONTRAST = 6.0
"""Fields whose detail has a smaller standard deviation, in grey levels, are not laid on one another."""
_RADIUS_SQUARED = 0.85
_STEPS = 5
_HOPELESS = {1: 0.55, 2: 0.7, 3: 0.8}  # below this after so many steps a pair is given up; copies are above
_MIN_COVERED = 0.7
_MAX_ZOOM = 1.35
_SIDE = 32
_HALF = (_SIDE - 1) / 2
_BLOCK = 2048

Floats = NDArray[np.float32]
Grey = NDArray[np.uint8]
Place = tuple[float, float, float, float]
"""Where one field lies in another one: a, b, c, d of (a x + b, c y + d)."""
_AXIS = np.linspace(-1, 1, _SIDE, dtype=np.float32)
_X, _Y = np.meshgrid(_AXIS, _AXIS)


def _surface(x: Floats, y: Floats) -> Floats:
    """Columns (n, 6) of a quadratic surface at n places."""
    return np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), axis=-1)


def _mask(side: int) -> NDArray[np.bool_]:
    """The disc in a square of so many pixels, as a flat list."""
    x, y = np.meshgrid(*2 * [(np.arange(side) * 2 + 1) / side - 1])
    return ((x * x + y * y) <= _RADIUS_SQUARED).ravel()


def _cosines() -> Floats:
    """Rows 1 to 8 of the discrete cosine transform of 32 values."""
    steps = np.arange(_SIDE) + 0.5
    return np.cos(np.pi / _SIDE * np.outer(np.arange(1, 9), steps)).astype(np.float32)


_DISC = _mask(_SIDE)
_SMOOTH = np.linalg.qr(_surface(_X.ravel()[_DISC], _Y.ravel()[_DISC]))[0].astype(np.float32)
_FADE = np.clip((_RADIUS_SQUARED**0.5 - np.hypot(_X, _Y).ravel()[_DISC]) / 0.25, 0, 1)
_DISC_X, _DISC_Y = (axis.ravel()[_DISC].reshape(-1, 1) for axis in (_X, _Y))
_COARSE_DISC = _mask(_SIDE // 2)
_COSINES = _cosines()


@dataclass(frozen=True)
class Detail:
    """What is left of n grey images of 32 x 32 pixels once a quadratic surface is taken out, inside a disc."""

    spread: Floats
    """(n) its standard deviation in grey levels."""
    unit: Floats
    """(n, 172) its means of 2 x 2 pixels, with length 1: their products are correlations; 0 where it is flat."""
    bits: NDArray[np.uint64]
    """(n) 64 bits: its perceptual hash."""


def visible_fields(thumbnails: Grey) -> Grey:
    """The visible field of each thumbnail, stretched to its size: without the dark rows and columns around it.

    Args:
        thumbnails: (n, 1024) grey levels of 32 x 32 pixels.

    Returns:
        (n, 1024).
    """
    fields = thumbnails.copy()
    for start in range(0, len(fields), _BLOCK):
        block = fields[start : start + _BLOCK]
        bright = np.partition(block, (9 * block.shape[1]) // 10, axis=1)[:, (9 * block.shape[1]) // 10]
        dark = np.maximum(bright * 0.25, 24.0).reshape(-1, 1)
        images = block.reshape(-1, _SIDE, _SIDE)
        # The sixth brightest value of a row decides, so that letters in the frame do not count as field.
        columns = np.partition(images, _SIDE - 6, axis=1)[:, _SIDE - 6] > dark
        rows = np.partition(images, _SIDE - 6, axis=2)[:, :, _SIDE - 6] > dark
        for index in np.flatnonzero(~(columns.all(axis=1) & rows.all(axis=1))).tolist():
            images[index] = _cut(images[index], _span(columns[index]), _span(rows[index]))
    return fields


def detail_of(images: Grey) -> Detail:
    """The detail of grey images (n, 1024) of 32 x 32 pixels."""
    number = len(images)
    spread = np.zeros(number, dtype=np.float32)
    unit = np.zeros((number, int(_COARSE_DISC.sum())), dtype=np.float32)
    bits = np.zeros(number, dtype=np.uint64)
    for start in range(0, number, _BLOCK):
        part = slice(start, start + _BLOCK)
        inside = images[part][:, _DISC].astype(np.float32)
        inside -= (inside @ _SMOOTH) @ _SMOOTH.T
        spread[part] = inside.std(axis=1)
        whole = np.zeros((len(inside), _SIDE * _SIDE), dtype=np.float32)
        whole[:, _DISC] = inside
        coarse = whole.reshape(-1, _SIDE // 2, 2, _SIDE // 2, 2).mean(axis=(2, 4)).reshape(len(inside), -1)
        coarse = coarse[:, _COARSE_DISC]
        coarse -= coarse.mean(axis=1, keepdims=True)
        length = np.linalg.norm(coarse, axis=1, keepdims=True)
        unit[part] = coarse / np.where(length > 1e-3, length, np.inf)
        whole[:, _DISC] *= _FADE  # no edge of the disc in the hash
        low = (_COSINES @ whole.reshape(-1, _SIDE, _SIDE) @ _COSINES.T).reshape(-1, 64)
        signs = low > np.median(low, axis=1, keepdims=True)
        bits[part] = np.packbits(signs, axis=1).view(np.uint64)[:, 0]
    return Detail(spread, unit, bits)


def same_photograph(one: Grey, other: Grey) -> bool:
    """Whether two fields (1024) show one photograph: either laid on the other one; the order makes no difference."""
    first = one.reshape(_SIDE, _SIDE).astype(np.float32)
    second = other.reshape(_SIDE, _SIDE).astype(np.float32)
    return _lies_in(first, second) or _lies_in(second, first)


def _lies_in(still: Floats, moving: Floats) -> bool:
    """Whether a field is a part of another one."""
    detail, place = aligned(still, moving)
    return detail >= MIN_DETAIL_ALIGNED and _whole_correlation(still, moving, place) >= MIN_ALIGNED


def aligned(still: Floats, moving: Floats) -> tuple[float, Place]:
    """Where a field lies best in another one that is shifted and stretched along both axes.

    Gauss-Newton steps (Lucas and Kanade 1981, with gain and a smooth offset) minimise the squared difference of
    `still(x, y)` and `gain * moving(a x + b, c y + d) + surface(x, y)`, a quadratic one, over the disc.

    Args:
        still: (32, 32) float32, grey levels.
        moving: (32, 32) float32, grey levels.

    Returns:
        The best correlation of what both hold beside a quadratic surface, in [-1, 1], -1 if that is nothing; and
        a, b, c, d there, with x and y in [-1, 1]. Hopeless pairs are given up after a few steps.
    """
    slope_x = cv2.Sobel(moving, cv2.CV_32F, 1, 0, ksize=3, scale=_HALF / 8)
    slope_y = cv2.Sobel(moving, cv2.CV_32F, 0, 1, ksize=3, scale=_HALF / 8)
    stack = cv2.merge((moving, slope_x, slope_y))
    target = _rough(still.ravel()[_DISC].reshape(-1, 1))[:, 0]
    place = best_place = (1.0, 0.0, 1.0, 0.0)
    best = -1.0
    for step in range(_STEPS + 1):
        a, b, c, d = place
        x, y = (a * _DISC_X + (b + 1)) * _HALF, (c * _DISC_Y + (d + 1)) * _HALF
        moved = cv2.remap(stack, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        value, along_x, along_y = moved[:, 0, 0], moved[:, 0, 1], moved[:, 0, 2]
        columns = _rough(np.stack((along_x * _DISC_X[:, 0], along_x, along_y * _DISC_Y[:, 0], along_y, value), axis=1))
        correlation = _cosine(target, columns[:, 4])
        if correlation > best:
            best, best_place = correlation, place
        if step == _STEPS or best < _HOPELESS.get(step, -1.0):
            break
        normal = columns.T @ columns
        normal[np.diag_indices(5)] *= 1 + 1e-5
        solution = np.linalg.solve(normal + 1e-3 * np.eye(5, dtype=np.float32), columns.T @ target).tolist()
        gain = solution[4] if abs(solution[4]) > 0.2 else 1.0
        place = (a + solution[0] / gain, b + solution[1] / gain, c + solution[2] / gain, d + solution[3] / gain)
        if not all(1 / _MAX_ZOOM < zoom < _MAX_ZOOM for zoom in (place[0], place[2])):
            break
    return best, best_place


def _rough(columns: Floats) -> Floats:
    """Values inside the disc (n, k) without the quadratic surface that fits them best."""
    return columns - _SMOOTH @ (_SMOOTH.T @ columns)


def _cosine(one: Floats, other: Floats) -> float:
    """Correlation of two lists of values with mean 0; -1 where one of them is flat."""
    length = float(np.sqrt(np.dot(one, one) * np.dot(other, other)))
    return float(np.dot(one, other)) / length if length > 0 else -1.0


def _whole_correlation(still: Floats, moving: Floats, place: Place) -> float:
    """Correlation of all grey values that two fields share where one lies so in the other; -1 if they share little."""
    a, b, c, d = place
    x, y = a * _X + b, c * _Y + d
    shown = (np.abs(x) <= 1) & (np.abs(y) <= 1)
    if np.count_nonzero(shown) < _MIN_COVERED * shown.size:
        return -1.0
    moved = cv2.remap(moving, (x + 1) * _HALF, (y + 1) * _HALF, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    one, other = still[shown], moved[shown]
    return _cosine(one - one.mean(), other - other.mean())


def _cut(thumbnail: Grey, columns: tuple[int, int], rows: tuple[int, int]) -> Grey:
    """A part of a thumbnail (32, 32), from the first column and row to those behind the last, stretched to its size."""
    if columns == rows == (0, _SIDE):
        return thumbnail
    steps = (np.arange(_SIDE) + 0.5) / _SIDE
    x, y = np.meshgrid(*(first + steps * (end - first) - 0.5 for first, end in (columns, rows)))
    moved = cv2.remap(
        thumbnail.astype(np.float32),
        x.astype(np.float32),
        y.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def _span(bright: NDArray[np.bool_]) -> tuple[int, int]:
    """First bright place and the one behind the last; everything if fewer than half are bright."""
    places = np.flatnonzero(bright)
    return (0, _SIDE) if places.size < _SIDE // 2 else (int(places[0]), int(places[-1]) + 1)
