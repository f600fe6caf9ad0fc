"""Whether one thumbnail is a part of another one: the same photograph without its frame, or with another crop.

Kvasir-SEG shows photographs of Kvasir v2 without their black frame; another crop moves every grey value of a thumbnail
and most bits of its hash. So the visible field is cut out first, then one field is laid on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_BITS = 14
"""Fields are compared when the hashes of both differ in at most so many of 64 places."""
MIN_CORRELATION = 0.82
"""... and when they correlate at least so well as they are."""
MIN_ALIGNED = 0.975
"""Fields are one photograph when they correlate at least so well once one is laid on the other."""
MIN_CONTRAST = 8.0
"""Fields with a smaller standard deviation, in grey levels, say too little."""
MOST_COMPARED = 4
"""An image is laid on at most so many others, those that correlate best."""
_STEPS = 5
_HOPELESS = {1: 0.8, 2: 0.9}  # below this after so many steps a pair is given up; copies are above
_MIN_COVERED = 0.7
_NEAREST = 512
_MAX_ZOOM = 1.35
_SIDE = 32

Floats = NDArray[np.float32]
_AXIS = np.linspace(-1, 1, _SIDE, dtype=np.float32)
_X, _Y = np.meshgrid(_AXIS, _AXIS)


@dataclass(frozen=True)
class Fields:
    """The visible fields of n images."""

    images: Floats
    """(n, 32, 32) grey levels."""
    unit: Floats
    """(n, 1024) the same with mean 0 and length 1; all 0 where there is too little contrast."""
    bits: NDArray[np.uint64]


def fields_of(thumbnails: NDArray[np.uint8]) -> Fields:
    """The visible fields of thumbnails (n, 1024) of whole grey levels."""
    number = len(thumbnails)
    images = np.zeros((number, _SIDE, _SIDE), dtype=np.float32)
    bits = np.zeros(number, dtype=np.uint64)
    for index, row in enumerate(thumbnails):
        images[index] = _field(row.reshape(_SIDE, _SIDE).astype(np.float32))
        block = cv2.dct(images[index])[1:9, 1:9].ravel()
        bits[index] = np.packbits(block > np.median(block)).view(np.uint64)[0]
    unit = images.reshape(number, _SIDE * _SIDE) - images.mean(axis=(1, 2)).reshape(-1, 1)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit *= np.where(length >= MIN_CONTRAST * _SIDE, 1 / np.maximum(length, 1e-6), 0).astype(np.float32)
    return Fields(images, unit, bits)


def same_photograph(fields: Fields, image: int, others: NDArray[np.int64], bits: NDArray[np.uint64]) -> list[int]:
    """Places in `others` (indices of images; `bits` are their hashes) of images that show the same photograph as `image`."""
    if not fields.unit[image].any():
        return []
    distance = np.bitwise_count(bits ^ fields.bits[image])
    places = np.flatnonzero(distance <= MAX_BITS)
    if places.size > _NEAREST:  # thousands of similar frames: the nearest are enough to form a chain
        places = np.sort(places[np.argsort(distance[places], kind="stable")[:_NEAREST]])
    if places.size == 0:
        return []
    correlation = fields.unit[others[places]] @ fields.unit[image]
    order = np.argsort(-correlation, kind="stable")[:MOST_COMPARED]
    chosen = places[order[correlation[order] >= MIN_CORRELATION]]
    one = fields.images[image]
    return [place for place in chosen.tolist() if _fit(one, fields.images[others[place]]) >= MIN_ALIGNED]


def _fit(one: Floats, other: Floats) -> float:
    """Correlation of two fields once one is laid on the other, in the better direction."""
    first = aligned_correlation(one, other)
    return first if first >= MIN_ALIGNED or first < _HOPELESS[2] else max(first, aligned_correlation(other, one))


def aligned_correlation(still: Floats, moving: Floats) -> float:
    """Best correlation of a field with another one that is shifted and stretched along both axes.

    Gauss-Newton steps (Lucas and Kanade 1981, with gain and offset) minimise the squared difference of `still(x, y)`
    and `gain * moving(a x + b, c y + d) + offset` over the part that both show.

    Args:
        still: (32, 32) float32, grey levels.
        moving: (32, 32) float32, grey levels.

    Returns:
        The correlation, in [-1, 1]; -1 if there is no contrast.
    """
    scale = (_SIDE - 1) / 2
    slope_x = cv2.Sobel(moving, cv2.CV_32F, 1, 0, ksize=3, scale=scale / 8)
    slope_y = cv2.Sobel(moving, cv2.CV_32F, 0, 1, ksize=3, scale=scale / 8)
    stack = np.dstack((moving, slope_x, slope_y))
    a, b, c, d = 1.0, 0.0, 1.0, 0.0
    best = -1.0
    for step in range(_STEPS + 1):
        x, y = a * _X + b, c * _Y + d
        shown = (np.abs(x) <= 1) & (np.abs(y) <= 1)
        if np.count_nonzero(shown) < _MIN_COVERED * shown.size:
            break
        moved = cv2.remap(stack, (x + 1) * scale, (y + 1) * scale, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        value, along_x, along_y = moved[shown].T
        target = still[shown]
        best = max(best, _correlation(target, value))
        if step == _STEPS or best < _HOPELESS.get(step, -1.0):
            break
        columns = np.stack(
            (along_x * _X[shown], along_x, along_y * _Y[shown], along_y, value, np.ones_like(value)), axis=1
        )
        normal = columns.T @ columns
        normal[np.diag_indices(6)] *= 1 + 1e-5
        solution = np.linalg.solve(normal + 1e-3 * np.eye(6, dtype=np.float32), columns.T @ target)
        gain = float(solution[4]) if abs(solution[4]) > 0.2 else 1.0
        a, b, c, d = (old + float(new) / gain for old, new in zip((a, b, c, d), solution, strict=False))
        if not all(1 / _MAX_ZOOM < zoom < _MAX_ZOOM for zoom in (a, c)):
            break
    return best


def _correlation(one: Floats, other: Floats) -> float:
    """Pearson correlation of two lists of values; -1 where one of them is flat."""
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt(np.dot(one, one) * np.dot(other, other)))
    return float(np.dot(one, other)) / length if length > 0 else -1.0


def _field(thumbnail: Floats) -> Floats:
    """The visible field of a thumbnail, stretched to (32, 32): without the dark rows and columns around it."""
    dark = max(0.25 * float(np.percentile(thumbnail, 90)), 24.0)
    # The sixth brightest value of a row decides, so that letters in the frame do not count as field.
    left, right = _span(np.partition(thumbnail, -6, axis=0)[-6] > dark)
    top, bottom = _span(np.partition(thumbnail, -6, axis=1)[:, -6] > dark)
    if (left, top, right, bottom) == (0, 0, _SIDE, _SIDE):
        return thumbnail
    steps = (np.arange(_SIDE) + 0.5) / _SIDE
    x, y = np.meshgrid(left + steps * (right - left) - 0.5, top + steps * (bottom - top) - 0.5)
    return cv2.remap(
        thumbnail, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _span(bright: NDArray[np.bool_]) -> tuple[int, int]:
    """First bright place and the one behind the last; everything if fewer than half are bright."""
    places = np.flatnonzero(bright)
    return (0, _SIDE) if places.size < _SIDE // 2 else (int(places[0]), int(places[-1]) + 1)
