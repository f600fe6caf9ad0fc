"""Where lesions lie in an image, in words: sides, the hour of a clock face, share of the area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cogalign.data.case import Box

LEAST_SHARE = 0.0005
"""Parts of a mask smaller than this share of the image are no lesion of their own."""
MOST_PLACES = 6
INNER, OUTER = 0.4, 0.6
"""Between these shares of a side something is in the middle."""
NEAR_CENTRE = 0.15
"""So near to the centre (in sides of the image) no hour is told."""


@dataclass(frozen=True)
class Place:
    """Where one lesion lies; all lengths are shares of the image's sides, from the upper left corner."""

    finding: str
    """Id of the finding; empty if a mask of several findings does not tell."""
    x: float
    y: float
    """Centre."""
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    share: float
    """Of the image's area; a box's is that of the box."""
    boxed: bool = False
    """Known from a box, so that the share is an upper bound."""

    @property
    def sides(self) -> str:
        """`upper left`, `lower centre`, `right`, `centre` ..."""
        row = "upper" if self.y < INNER else "lower" if self.y > OUTER else ""
        column = "left" if self.x < INNER else "right" if self.x > OUTER else "centre"
        return f"{row} {column}".strip()

    @property
    def hour(self) -> int | None:
        """The hour at which it lies on a clock face around the image's centre; None near the centre."""
        dx, dy = self.x - 0.5, self.y - 0.5
        if math.hypot(dx, dy) < NEAR_CENTRE:
            return None
        return round(math.degrees(math.atan2(dx, -dy)) / 30) % 12 or 12

    @property
    def words(self) -> str:
        """`upper left of the image, at about 10 o'clock`."""
        return f"{self.sides} of the image" + (f", at about {self.hour} o'clock" if self.hour else "")

    @property
    def size(self) -> str:
        """`about 6 % of the image area`."""
        return f"{'a box of ' if self.boxed else ''}{percent(self.share)} of the image area"


def percent(share: float) -> str:
    """A share as people say it: `about 6 %`, `about 0.4 %`, `less than 0.1 %`."""
    value = 100 * share
    if value < 0.1:
        return "less than 0.1 %"
    return f"about {value:.1f} %" if value < 1 else f"about {value:.0f} %"


def from_boxes(boxes: Sequence[Box], width: int, height: int, mask: np.ndarray | None = None) -> list[Place]:
    """A place for each box, the largest first, at most `MOST_PLACES`.

    With a bool mask (height, width) centre and share are those of what is True inside the box, if there is any.
    """
    places = []
    for box in boxes:
        xmin, xmax = sorted((min(max(box.xmin / width, 0.0), 1.0), min(max(box.xmax / width, 0.0), 1.0)))
        ymin, ymax = sorted((min(max(box.ymin / height, 0.0), 1.0), min(max(box.ymax / height, 0.0), 1.0)))
        inside = np.zeros((0, 0), dtype=bool)
        if mask is not None:
            inside = mask[max(box.ymin, 0) : max(box.ymax, 0), max(box.xmin, 0) : max(box.xmax, 0)]
        if inside.any():
            rows, columns = np.nonzero(inside)
            centre = xmin + (columns.mean() + 0.5) / width, ymin + (rows.mean() + 0.5) / height
            share = float(inside.sum()) / (width * height)
        else:
            centre = (xmin + xmax) / 2, (ymin + ymax) / 2
            share = (xmax - xmin) * (ymax - ymin)
        x, y = (float(value) for value in centre)
        places.append(Place(box.finding, x, y, xmin, ymin, xmax, ymax, share, boxed=not inside.any()))
    return _largest(places)


def from_mask(mask: np.ndarray, finding: str) -> list[Place]:
    """A place for each connected part of a bool mask (height, width), the largest first, at most `MOST_PLACES`.

    Args:
        mask: True on any lesion.
        finding: id of the finding that all of it is; empty if that is not known.
    """
    height, width = mask.shape
    count, _, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = []
    for index in range(1, count):
        left, top, wide, high, area = (int(value) for value in stats[index])
        x, y = ((float(value) + 0.5) / side for value, side in zip(centres[index], (width, height), strict=True))
        ends = (left / width, top / height, (left + wide) / width, (top + high) / height)
        parts.append(Place(finding, x, y, *ends, area / (width * height)))
    return _largest([part for part in parts if part.share >= LEAST_SHARE] or parts)


def _largest(places: list[Place]) -> list[Place]:
    return sorted(places, key=lambda place: -place.share)[:MOST_PLACES]
