"""Smooth random fields and coordinates: the raw material of the phantom. Pure functions on arrays."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


@lru_cache(maxsize=4)
def grid(size: int) -> tuple[Image, Image]:
    """Row and column coordinates `[size, size]` as shares of the side, pixel centres."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = (np.asarray(part, np.float32) for part in np.meshgrid(axis, axis, indexing="ij"))
    y.setflags(write=False)
    x.setflags(write=False)
    return y, x


def noise(rng: np.random.Generator, size: int, cells: int) -> Image:
    """Smooth noise `[size, size]` of about unit spread with `cells` bumps along a side."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def smoothstep(value: Image, low: float, high: float) -> Image:
    """0 below `low`, 1 above `high`, smooth between (also for low > high)."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def mix(image: Image, colour: NDArray[np.float32] | Image, alpha: Image) -> Image:
    """`image` [H, W, 3] with `colour` ([3] or [H, W, 3]) laid over it by `alpha` [H, W]; work is done where alpha is not 0."""
    out = image.copy()
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not rows.size:
        return out
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    paint = colour if colour.ndim == 1 else colour[window]
    out[window] += (paint - out[window]) * alpha[window][..., None]
    return out


def strokes(size: int, paths: list[NDArray[np.float32]], widths: list[float], blur: float) -> Image:
    """Anti-aliased curves `[size, size]` in [0, 1]; paths are [N, 2] (x, y) in shares of the side."""
    canvas = np.zeros((size, size), np.uint8)
    for path, width in zip(paths, widths, strict=True):
        points = np.round(path * size * 16).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(canvas, [points], False, 255, max(1, round(width * size)), cv2.LINE_AA, 4)
    out = canvas.astype(np.float32) / 255.0
    return cv2.GaussianBlur(out, (0, 0), blur * size) if blur > 0 else out


def branch(
    rng: np.random.Generator, start: tuple[float, float], angle: float, length: float, depth: int, wiggle: float = 0.35
) -> tuple[list[NDArray[np.float32]], list[float]]:
    """A branching vessel from `start` (x, y): paths and relative widths, thinner towards the tips."""
    paths: list[NDArray[np.float32]] = []
    widths: list[float] = []
    stack = [(np.asarray(start, np.float32), angle, length, depth)]
    while stack:
        point, heading, reach, level = stack.pop()
        headings = heading + np.cumsum(rng.normal(0, wiggle, 7))
        steps = np.stack([np.cos(headings), np.sin(headings)], -1) * (reach / 7)
        path = np.concatenate([point[None], point + np.cumsum(steps, 0)]).astype(np.float32)
        paths.append(path)
        widths.append(0.35 + 0.3 * level)
        if level > 0:
            for sign in (-1, 1):
                knot = path[rng.integers(3, 8)]
                stack.append((knot, headings[-1] + sign * rng.uniform(0.4, 1.0), reach * 0.7, level - 1))
    return paths, widths
