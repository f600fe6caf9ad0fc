"""Blurs: the paper's, which reads the lesion, and one that continues the surroundings."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.fills.composite import find_hole, paste
from cogalign.counterfactual.masks import Alpha, Image, Mask, grow, reach

EXACT_SIGMA = 5.0
"""Above this sigma, in pixels, a blur is computed on a reduced image and enlarged again."""
SCALES = (1.0, 2.0, 4.0)
"""Widths of `surround_blur` over sigma; a wider one counts only where the narrower ones saw next to nothing."""
FAINT = 0.01
"""Weight of each wider scale over the one before it."""


def _blur(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur with reflected borders; wide ones on a reduced image (less than one grey level apart)."""
    factor = int(sigma / EXACT_SIGMA * 2)
    height, width = values.shape[:2]
    if factor < 2 or min(height, width) < 4 * factor:
        blurred: NDArray[np.float32] = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
        return blurred
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    small = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    # Averaging over a cell blurs too, and so does linear enlargement: their variances, in cells, are taken off.
    rest = math.sqrt(max((sigma / factor) ** 2 - 1 / 12 - 1 / 6, 0.25))
    small = cv2.GaussianBlur(small, (0, 0), rest, borderType=cv2.BORDER_REFLECT_101)
    enlarged: NDArray[np.float32] = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return enlarged


def gaussian_blur(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None = None,
    rng: np.random.Generator | None = None,
) -> Image:
    """Gaussian smoothing inside the mask: x (1 - M) + G(x, sigma) M (CogAlign, eq. 11), M with a soft edge.

    The blur reads the lesion itself: with a small sigma its colour stays, as a pale stain.

    Args:
        image: H x W x 3 uint8.
        alpha: H x W float32 in [0, 1].
        sigma: standard deviation in pixels.
        hidden: not used; every fill takes the same arguments.
        rng: not used.

    Raises:
        ValueError: the mask is empty.
    """
    del hidden, rng
    window = reach(alpha)
    around = grow(window, math.ceil(3 * sigma), image.shape)
    blurred = _blur(image[around].astype(np.float32), sigma)
    return paste(image, blurred, alpha, window, around)


def surround_blur(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None = None,
    rng: np.random.Generator | None = None,
) -> Image:
    """Smooth continuation of the surroundings: a normalised blur that never reads what it covers.

    Normalised convolution (Knutsson and Westin, CVPR 1993): sum_k e^k G_k(x v) / sum_k e^k G_k(v), where v is 1 on the
    pixels that may be read and G_k has the standard deviation 2^k sigma, so the middle of a large lesion, which a
    narrow blur does not reach, is filled from further away without a seam.

    Args:
        image: H x W x 3 uint8.
        alpha: H x W float32 in [0, 1]; pixels above 0 are not read.
        sigma: standard deviation of the narrowest blur in pixels.
        hidden: H x W, further pixels that must not be read (other lesions, black border).
        rng: not used.

    Raises:
        ValueError: the mask is empty, or covers the whole image.
    """
    del rng
    hole = find_hole(alpha, hidden, math.ceil(2 * sigma * SCALES[-1]))
    painted = spread(image[hole.around].astype(np.float32), hole.known, sigma)
    return paste(image, painted, alpha, hole.window, hole.around)


def spread(values: NDArray[np.float32], known: Mask, sigma: float) -> NDArray[np.float32]:
    """Continue the known values smoothly over the unknown ones; see `surround_blur` for the formula.

    Args:
        values: H x W x 3 float32.
        known: H x W; with no known pixel at all the result is 0.
        sigma: standard deviation of the narrowest blur in pixels.

    Returns:
        H x W x 3 float32, smooth everywhere, also on the known pixels.
    """
    weight = known.astype(np.float32)
    height, width = known.shape
    factor = max(1.0, sigma / (EXACT_SIGMA / 2))
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    planes = cv2.resize(np.dstack((values * weight[..., None], weight)), size, interpolation=cv2.INTER_AREA)
    # A trace of the mean keeps the quotient defined where no blur reaches.
    total = np.float32(1e-9) * (planes.mean(axis=(0, 1)) + np.float32(1e-6) * np.eye(4, dtype=np.float32)[3])
    for step, scale in enumerate(SCALES):
        blurred = cv2.GaussianBlur(planes, (0, 0), sigma / factor * scale, borderType=cv2.BORDER_REFLECT_101)
        total = total + np.float32(FAINT**step) * blurred
    quotient = total[..., :3] / total[..., 3:]
    result: NDArray[np.float32] = cv2.resize(quotient, (width, height), interpolation=cv2.INTER_LINEAR)
    return result
