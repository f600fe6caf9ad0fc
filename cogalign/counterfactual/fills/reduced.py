"""Images with unknown pixels on a coarser grid, and unknown pixels made known."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.fills.blur import spread
from cogalign.counterfactual.masks import Mask


def reduce_known(values: NDArray[np.float32], known: Mask, factor: float) -> tuple[NDArray[np.float32], Mask]:
    """Average the known pixels in each cell of a coarser grid.

    Args:
        values: H x W x 3 float32.
        known: H x W.
        factor: side of a cell in pixels, at least 1.

    Returns:
        h x w x 3 float32 (0 in cells without a known pixel), and h x w: cells that are known by at least half.
    """
    height, width = known.shape
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    weight = known.astype(np.float32)
    planes = cv2.resize(np.dstack((values * weight[..., None], weight)), size, interpolation=cv2.INTER_AREA)
    share = planes[..., 3]
    cells: NDArray[np.float32] = planes[..., :3] / np.maximum(share, 1e-6)[..., None]
    return cells, np.asarray(share >= 0.5)


def fill_hidden(values: NDArray[np.float32], known: Mask, target: Mask, sigma: float) -> NDArray[np.float32]:
    """The values with all pixels that are neither known nor to be filled replaced by their smooth continuation.

    Inpainting reads every pixel beside its mask; so that none of a black border, a highlight or another lesion is
    read, those are replaced first.

    Args:
        values: H x W x 3 float32.
        known: H x W, at least one.
        target: H x W, the pixels that are inpainted afterwards.
        sigma: width of the continuation in pixels.
    """
    rest = ~known & ~target
    if not rest.any():
        return values
    return np.where(rest[..., None], spread(values, known, sigma), values)
