"""Square crops around a lesion and of lesion-free mucosa, at one scale for a case. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cogalign.counterfactual.masks import Image, Mask, visible_mucosa
from cogalign.counterfactual.placement import find_place

MARGIN = 0.25
"""Mucosa around the box of an edit on each side, over the longer side of the box."""
SCALES = (1.0, 0.8, 0.64, 0.5, 0.4)
"""Shares of the full side that are tried until a lesion-free square of this size is there."""
LEAST_SIDE = 12
"""Smallest side of a crop in pixels."""


@dataclass(frozen=True)
class Square:
    """A square of an image, in pixels."""

    top: int
    left: int
    side: int

    def cut(self, image: Image) -> Image:
        """The part of an image (H x W x 3)."""
        return np.ascontiguousarray(image[self.top : self.top + self.side, self.left : self.left + self.side])


def largest_part(mask: Mask) -> Mask:
    """The largest connected part of a mask (H x W); an empty mask stays empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    part: Mask = labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return part


def square_around(mask: Mask, side: int | None = None) -> Square:
    """The square in the middle of whose reach the largest part of a mask lies, moved into the image.

    Args:
        mask: H x W, at least one pixel.
        side: its side in pixels; None for the longer side of the box with `MARGIN` around it.

    Raises:
        ValueError: the mask is empty.
    """
    left, top, width, height = cv2.boundingRect(largest_part(mask).astype(np.uint8))
    if width == 0:
        raise ValueError("crop: found an empty mask, wanted at least one pixel")
    rows, columns = mask.shape
    wanted = round(max(width, height) * (1 + 2 * MARGIN)) if side is None else side
    wanted = min(max(wanted, LEAST_SIDE), rows, columns)
    middle = (top + height / 2, left + width / 2)
    corner = [round(at - wanted / 2) for at in middle]
    return Square(min(max(corner[0], 0), rows - wanted), min(max(corner[1], 0), columns - wanted), wanted)


def free_square(visible: Mask, forbidden: Mask | None, side: int, rng: np.random.Generator) -> Square | None:
    """A square of visible mucosa that touches nothing forbidden, drawn at random; None if there is none."""
    place = find_place(np.ones((side, side), dtype=bool), visible, forbidden, rng)
    return None if place is None else Square(place.top, place.left, side)


def lesion_and_free(image: Image, lesion: Mask, rng: np.random.Generator) -> tuple[Square, Square | None]:
    """Two squares of one size: one around the lesion, one of lesion-free mucosa of the same image.

    Where no free square of the full size is there both are made smaller, so that the size never tells which is which.

    Args:
        image: H x W x 3 uint8, the source.
        lesion: H x W, all that an edit touches.
        rng: draws the free place.

    Returns:
        The square around the lesion, and the free one or None (then the first has its full size).
    """
    full = square_around(lesion)
    visible = visible_mucosa(image)
    for scale in SCALES:
        side = max(LEAST_SIDE, round(scale * full.side))
        if side > full.side:
            break
        found = free_square(visible, lesion, side, rng)
        if found is not None:
            return square_around(lesion, side), found
    return full, None
