"""Where a lesion's shape fits: a free place on visible mucosa, shifted and turned."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cogalign.counterfactual.masks import Alpha, Mask, reach, reduction, shrink_any

TURNS = 8
"""Quarter turns, each with and without a mirror: they move every pixel without resampling."""
HIDDEN_SHARE = 0.04
"""A place may hold at most this share of pixels that are not visible mucosa (dark folds, letters)."""


@dataclass(frozen=True)
class Place:
    """Where a cropped shape goes: first turned, then put with its corner at (`top`, `left`)."""

    turn: int
    top: int
    left: int


def turned(values: np.ndarray, turn: int) -> np.ndarray:
    """The array (H x W or H x W x C) after `turn` % 4 quarter turns, mirrored first for `turn` >= 4."""
    return np.rot90(values[:, ::-1] if turn >= 4 else values, turn % 4)


def find_place(shape: Mask, visible: Mask, forbidden: Mask | None, rng: np.random.Generator) -> Place | None:
    """A place for the shape, uniformly among those of the first turn (in random order) that has any.

    The search runs on reduced maps and is on the safe side by less than a cell.

    Args:
        shape: h x w, the cropped support that has to fit.
        visible: H x W, visible mucosa.
        forbidden: H x W, pixels that the shape must not touch at all, or None.
        rng: source of the choice.

    Returns:
        The place, or None if the shape fits nowhere.
    """
    factor = reduction(visible.shape)
    unseen = _blocked(~visible, factor)
    banned = None if forbidden is None else _blocked(forbidden, factor)
    inside = (visible.shape[0] // factor, visible.shape[1] // factor)
    for turn in rng.permutation(TURNS):
        small = shrink_any(np.ascontiguousarray(turned(shape, int(turn))), factor).astype(np.float32)
        if small.shape[0] > inside[0] or small.shape[1] > inside[1]:
            continue
        fits = cv2.matchTemplate(unseen, small, cv2.TM_CCORR) <= HIDDEN_SHARE * float(small.sum()) + 0.25
        if banned is not None:
            fits &= cv2.matchTemplate(banned, small, cv2.TM_CCORR) < 0.5
        places = np.argwhere(fits)
        if len(places):
            row, column = places[rng.integers(len(places))]
            return Place(int(turn), int(row) * factor, int(column) * factor)
    return None


def _blocked(mask: Mask, factor: int) -> np.ndarray:
    """The mask on whole cells of the reduced map, 1 where any pixel is set, as float32."""
    rows, columns = mask.shape[0] // factor * factor, mask.shape[1] // factor * factor
    return shrink_any(mask[:rows, :columns], factor).astype(np.float32)


def put(canvas: np.ndarray, values: np.ndarray, place: Place) -> tuple[slice, slice]:
    """Keep the larger of the canvas and the turned values at their place; returns the window written."""
    values = turned(values, place.turn)
    window = (slice(place.top, place.top + values.shape[0]), slice(place.left, place.left + values.shape[1]))
    canvas[window] = np.maximum(canvas[window], values)
    return window


def move_pieces(alphas: list[Alpha], visible: Mask, forbidden: Mask, rng: np.random.Generator) -> Alpha | None:
    """The alphas of several lesions, each at a free place of its own, in one map.

    Args:
        alphas: H x W each.
        visible: H x W, visible mucosa.
        forbidden: H x W, pixels that must stay untouched.
        rng: source of the choice.

    Returns:
        H x W float32, or None if one of them fits nowhere.
    """
    result = np.zeros(visible.shape, dtype=np.float32)
    for alpha in alphas:
        crop = alpha[reach(alpha)]
        place = find_place(crop > 0, visible, forbidden | (result > 0), rng)
        if place is None:
            return None
        put(result, crop, place)
    return result
