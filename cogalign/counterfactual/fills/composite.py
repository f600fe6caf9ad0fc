"""What all fills share: mixing by opacity, the window to work in, and which of its pixels may be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.masks import Alpha, Image, Mask, grow, reach

Window = tuple[slice, slice]
FillFunction = Callable[[Image, Alpha, float, Mask | None, np.random.Generator], Image]
"""(image, alpha, sigma in pixels, hidden, generator) -> image; `hidden` pixels are not read, None hides none."""

MOST_PIECES = 12
"""A mask of more pieces is filled as one."""


def composite(image: Image, painted: NDArray[np.float32], alpha: Alpha) -> Image:
    """Mix by opacity: image * (1 - alpha) + painted * alpha, rounded; where alpha is 0 the bytes are the image's.

    Args:
        image: H x W x 3 uint8.
        painted: H x W x 3 float32, 0 to 255.
        alpha: H x W float32 in [0, 1].
    """
    soft = alpha[..., None]
    mixed = image.astype(np.float32) * (1.0 - soft) + painted * soft
    return np.where(soft > 0, np.clip(np.rint(mixed), 0, 255).astype(np.uint8), image)


def paste(image: Image, painted: NDArray[np.float32], alpha: Alpha, window: Window, around: Window) -> Image:
    """Composite the part `window` of `painted`, which covers `around`, into a copy of the image."""
    result = image.copy()
    result[window] = composite(image[window], painted[within(window, around)], alpha[window])
    return result


def within(window: Window, around: Window) -> Window:
    """The window in the coordinates of a larger one."""
    rows, columns = (
        slice(inner.start - outer.start, inner.stop - outer.start) for inner, outer in zip(window, around, strict=True)
    )
    return rows, columns


@dataclass(frozen=True)
class Hole:
    """A region to fill, with its surroundings.

    Attributes:
        window: rows and columns of the region.
        around: the same with the margin.
        region: h x w of `around`; the pixels to fill.
        known: h x w of `around`; the pixels that may be read, at least one.
    """

    window: Window
    around: Window
    region: Mask
    known: Mask

    @property
    def radius(self) -> float:
        """Radius in pixels of a disc with the area of the region."""
        return math.sqrt(float(np.count_nonzero(self.region)) / math.pi)


def find_hole(alpha: Alpha, hidden: Mask | None, margin: int, region: Mask | None = None) -> Hole:
    """The region to fill, and what may be read around it.

    If the margin holds no pixel that may be read, the whole image is read; if that holds none either, hidden pixels
    are read too.

    Args:
        alpha: H x W float32 in [0, 1]; pixels above 0 are not read.
        hidden: H x W, further pixels that must not be read, or None.
        margin: pixels on each side of the region.
        region: H x W, the part of `alpha` above 0 to fill; None for all.

    Raises:
        ValueError: the mask is empty, or covers the whole image.
    """
    free = alpha == 0
    if not free.any():
        raise ValueError("mask covers the whole image: found no pixel beyond it to fill from, wanted at least one")
    region = ~free if region is None else region
    window = reach(region)
    around = grow(window, max(1, margin), alpha.shape)
    everything = (slice(0, alpha.shape[0]), slice(0, alpha.shape[1]))
    readable = free if hidden is None else free & ~hidden
    for known, where in ((readable, around), (readable, everything), (free, around), (free, everything)):
        if known[where].any():
            return Hole(window, where, region[where], known[where])
    raise AssertionError("unreachable: a free pixel was found")


def pieces(alpha: Alpha) -> Iterator[Mask]:
    """The connected pieces of the pixels above 0, H x W each; all as one if there are more than `MOST_PIECES`."""
    support = alpha > 0
    count, labels = cv2.connectedComponents(support.astype(np.uint8), connectivity=8)
    if count - 1 > MOST_PIECES or count == 2:
        yield support
        return
    for label in range(1, count):
        yield labels == label
