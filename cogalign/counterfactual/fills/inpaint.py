"""Inpainting of OpenCV and scikit-image."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.fills.composite import Hole, find_hole, paste, pieces, within
from cogalign.counterfactual.fills.reduced import fill_hidden, reduce_known
from cogalign.counterfactual.masks import Alpha, Image, Mask, reach

MARGIN = 0.5
"""Margin of the window that inpainting sees, over the radius of the region."""
LEAST_MARGIN = 8
"""The margin is at least so many pixels."""
MOST_SIDE = 128
"""Larger regions, in pixels, are inpainted by OpenCV on a reduced image."""
BIHARMONIC_SIDE = 48
"""The same for the biharmonic equation, whose sparse solver is slow; its solution is smooth, so little is lost."""
REACH = 5.0
"""Radius in pixels of the neighbourhood that the methods of OpenCV read."""

Solver = Callable[[NDArray[np.float32], Mask], NDArray[np.float32]]
"""(h x w x 3 float32 in 0 to 255, h x w to inpaint) -> h x w x 3 float32."""


def telea(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None = None,
    rng: np.random.Generator | None = None,
) -> Image:
    """Fast marching inpainting (Telea, Journal of Graphics Tools 2004; `cv2.inpaint`).

    Regions wider than `MOST_SIDE` are inpainted on a reduced image and enlarged.

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
    return _inpaint(image, alpha, hidden, MOST_SIDE, lambda values, target: _opencv(values, target, cv2.INPAINT_TELEA))


def navier_stokes(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None = None,
    rng: np.random.Generator | None = None,
) -> Image:
    """Inpainting by fluid dynamics (Bertalmio et al., CVPR 2001; `cv2.inpaint`); see `telea` for the arguments."""
    del sigma, rng
    return _inpaint(image, alpha, hidden, MOST_SIDE, lambda values, target: _opencv(values, target, cv2.INPAINT_NS))


def biharmonic(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None = None,
    rng: np.random.Generator | None = None,
) -> Image:
    """The surface whose double Laplacian is 0 (Damelin and Hoang 2018; `skimage.restoration.inpaint_biharmonic`).

    Regions wider than `BIHARMONIC_SIDE` are solved on a reduced image and enlarged: at 512 x 512 in a fraction of a
    second instead of minutes. See `telea` for the arguments.
    """
    del sigma, rng
    return _inpaint(image, alpha, hidden, BIHARMONIC_SIDE, _biharmonic)


def _opencv(values: NDArray[np.float32], target: Mask, method: int) -> NDArray[np.float32]:
    whole = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return cv2.inpaint(whole, target.astype(np.uint8), REACH, method).astype(np.float32)


def _biharmonic(values: NDArray[np.float32], target: Mask) -> NDArray[np.float32]:
    from skimage.restoration import inpaint_biharmonic

    solved = inpaint_biharmonic(values / 255.0, target, channel_axis=-1)
    return np.asarray(solved * 255.0, dtype=np.float32)


def _inpaint(image: Image, alpha: Alpha, hidden: Mask | None, most: int, solve: Solver) -> Image:
    """Inpaint every piece of the mask in its own window."""
    window = reach(alpha)
    painted = image[window].astype(np.float32)
    for region in pieces(alpha):
        radius = math.sqrt(np.count_nonzero(region) / math.pi)
        hole = find_hole(alpha, hidden, max(LEAST_MARGIN, math.ceil(MARGIN * radius)), region)
        filled = _fill(image[hole.around].astype(np.float32), hole, most, solve)
        inside = region[window]
        painted[inside] = filled[within(hole.window, hole.around)][region[hole.window]]
    return paste(image, painted, alpha, window, window)


def _fill(values: NDArray[np.float32], hole: Hole, most: int, solve: Solver) -> NDArray[np.float32]:
    """The values with the region inpainted; on a grid where the region is at most `most` cells wide."""
    height, width = hole.region.shape
    values = fill_hidden(values, hole.known, hole.region, max(1.0, 0.25 * hole.radius))
    side = max(hole.window[0].stop - hole.window[0].start, hole.window[1].stop - hole.window[1].start)
    if side <= most:
        return solve(values, hole.region)
    cells, known = reduce_known(values, ~hole.region, side / most)
    solved = solve(cells, ~known)
    enlarged: NDArray[np.float32] = cv2.resize(solved, (width, height), interpolation=cv2.INTER_CUBIC)
    return enlarged
