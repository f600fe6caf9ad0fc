"""Polygons along the edges of pixels, and the masks that polygons stand for.

Coordinates are those of COCO: pixel (x, y) covers the square from (x, y) to (x + 1, y + 1). A pixel belongs to a
polygon if its middle lies inside. OpenCV and PIL also fill every pixel that the outline touches, so that a mask
would grow with each export; hence this short scan-line code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cogalign.data.review.rle import Mask

Points = NDArray[np.float64]
"""Corners of a polygon, n x 2: x, y in pixels."""


def rasterise(points: Points, height: int, width: int) -> Mask:
    """The mask of a polygon, H x W: pixels whose middle an odd number of edges surrounds.

    Args:
        points: corners, at least three; they may lie outside the image.
        height: rows of the mask.
        width: columns of the mask.

    Raises:
        ValueError: fewer than three corners, or a coordinate that is not finite.
    """
    if points.ndim != 2 or points.shape[0] < 3 or points.shape[1] != 2:
        raise ValueError(f"polygon: found an array of shape {points.shape}, wanted at least 3 corners of x and y")
    if not np.isfinite(points).all():
        raise ValueError("polygon: found a coordinate that is not finite")
    start, end = points, np.roll(points, -1, axis=0)
    upper = np.minimum(start[:, 1], end[:, 1])
    lower = np.maximum(start[:, 1], end[:, 1])
    # Rows whose middle y + 1/2 lies in [upper, lower).
    first = np.clip(np.ceil(upper - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower - 0.5), 0, height).astype(np.int64)
    spans = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(points)), spans)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans)
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    toggles = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    odd: Mask = np.cumsum(toggles, axis=1)[:, :width] % 2 == 1
    return odd


def outlines(mask: Mask) -> tuple[list[Points], bool]:
    """The polygons around the regions of a mask, and whether a region has a hole.

    A hole is one of the polygons too: a list of polygons cannot say which to subtract, so a mask with holes must be
    kept as run lengths.

    Args:
        mask: H x W.
    """
    steps = _steps(mask)
    polygons: list[Points] = []
    hole = False
    while steps:
        corner = next(iter(steps))
        loop = _walk(steps, corner)
        polygons.append(np.array(loop, dtype=np.float64))
        hole = hole or _signed_area(polygons[-1]) < 0
    return polygons, hole


def _steps(mask: Mask) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Unit steps along the edges of the mask's pixels with the lesion to the right: directions by starting corner."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (1, 0)),  # nothing above: to the right along the top
        (inside & ~padded[1:-1, 2:], (1, 0), (0, 1)),  # nothing to the right: down
        (inside & ~padded[2:, 1:-1], (1, 1), (-1, 0)),  # nothing below: to the left
        (inside & ~padded[1:-1, :-2], (0, 1), (0, -1)),  # nothing to the left: up
    )
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for open_side, (right, down), direction in sides:
        for y, x in np.argwhere(open_side).tolist():
            steps.setdefault((x + right, y + down), []).append(direction)
    return steps


def _walk(steps: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]) -> list[tuple[int, int]]:
    """Follow the steps from a corner back to it, taking them out; the corners at which the direction changes."""
    corners: list[tuple[int, int]] = []
    here, direction = start, (0, 0)
    while here in steps:
        ways = steps[here]
        # Where two pixels touch at a corner, turn right: each keeps its own polygon.
        right = (-direction[1], direction[0])
        way = right if len(ways) > 1 and right in ways else ways[0]
        ways.remove(way)
        if not ways:
            del steps[here]
        if way != direction:
            corners.append(here)
        here, direction = (here[0] + way[0], here[1] + way[1]), way
        if here == start:
            break
    return corners


def _signed_area(points: Points) -> float:
    """Area of a polygon; negative when it is walked against the clock (y points down)."""
    x, y = points[:, 0], points[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)
