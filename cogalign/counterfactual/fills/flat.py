"""Flat fills: one colour."""

from __future__ import annotations

import math

import cv2
import numpy as np

from cogalign.counterfactual.fills.composite import Hole, find_hole, paste, pieces
from cogalign.counterfactual.masks import Alpha, Image, Mask, reach

RING = 0.35
"""Width of the ring whose mean colour is taken, over the radius of the region."""


def white(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None = None,
    rng: np.random.Generator | None = None,
) -> Image:
    """A white patch (the paper's ablation).

    Args:
        image: H x W x 3 uint8.
        alpha: H x W float32 in [0, 1].
        sigma: not used; every fill takes the same arguments.
        hidden: not used.
        rng: not used.

    Raises:
        ValueError: the mask is empty.
    """
    del sigma, hidden, rng
    window = reach(alpha)
    painted = np.full_like(image[window], 255, dtype=np.float32)
    return paste(image, painted, alpha, window, window)


def mean(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None = None,
    rng: np.random.Generator | None = None,
) -> Image:
    """Each piece of the mask in the mean colour of the mucosa on the ring around it.

    Where nothing on the ring may be read, the colour is that of all that may be read nearby.

    Args:
        image: H x W x 3 uint8.
        alpha: H x W float32 in [0, 1]; pixels above 0 are not read.
        sigma: not used.
        hidden: H x W, further pixels that must not be read.
        rng: not used.

    Raises:
        ValueError: the mask is empty, or covers the whole image.
    """
    del sigma, rng
    window = reach(alpha)
    painted = np.zeros((*alpha[window].shape, 3), dtype=np.float32)
    for region in pieces(alpha):
        margin = max(2, math.ceil(RING * math.sqrt(np.count_nonzero(region) / math.pi)))
        hole = find_hole(alpha, hidden, margin, region)
        painted[region[window]] = image[hole.around][_ring(hole, margin)].mean(axis=0, dtype=np.float64)
    return paste(image, painted, alpha, window, window)


def _ring(hole: Hole, width: int) -> Mask:
    """The pixels that may be read at most `width` from the region, or all that may be read if that is none."""
    distance = cv2.distanceTransform((~hole.region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    ring: Mask = hole.known & (distance <= width)
    return ring if ring.any() else hole.known
