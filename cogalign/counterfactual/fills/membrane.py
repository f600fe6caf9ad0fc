"""Smooth shading over a hole that meets its surroundings without a step."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.fills.reduced import reduce_known
from cogalign.counterfactual.masks import Mask

CELLS = 36
"""The equation is solved on a grid of at most so many cells a side."""
SMOOTH = 1.2
"""The known cells are blurred by this much, in cells, so that the end of a vessel draws no streak."""


def membrane(values: NDArray[np.float32], known: Mask) -> NDArray[np.float32]:
    """Continue the known values by the surface whose Laplacian is 0 (the membrane of Perez et al., 2003).

    Solved on a grid of at most `CELLS` a side with nothing flowing over the border, and enlarged.

    Args:
        values: H x W x 3 float32.
        known: H x W, at least one.

    Returns:
        H x W x 3 float32, smooth everywhere, also on the known pixels.
    """
    height, width = known.shape
    factor = max(1.0, max(height, width) / CELLS)
    cells, fixed = reduce_known(values, known, factor)
    if not fixed.any():
        return np.broadcast_to(values[known].mean(axis=0), values.shape).astype(np.float32)
    weight = fixed.astype(np.float32)
    planes = cv2.GaussianBlur(np.dstack((cells * weight[..., None], weight)), (0, 0), SMOOTH)
    smooth = planes[..., :3] / np.maximum(planes[..., 3:], 1e-6)
    solved = _laplace(np.where(fixed[..., None], smooth, 0).astype(np.float32), fixed)
    enlarged: NDArray[np.float32] = cv2.resize(solved, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(enlarged, 0, 255)


def _laplace(cells: NDArray[np.float32], fixed: Mask) -> NDArray[np.float32]:
    """The cells that are not fixed as the mean of their neighbours; the grid hangs together, so there is one answer."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import splu

    free = ~fixed
    count = int(np.count_nonzero(free))
    if count == 0:
        return cells
    index = np.full(fixed.shape, -1, dtype=np.int32)
    index[free] = np.arange(count)
    diagonal = np.zeros(count)
    right = np.zeros((count, 3))
    rows, columns = [], []
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        here = [slice(None), slice(None)]
        there = [slice(None), slice(None)]
        here[axis] = slice(0, -1) if step > 0 else slice(1, None)
        there[axis] = slice(1, None) if step > 0 else slice(0, -1)
        own, other = index[tuple(here)], index[tuple(there)]
        pair = own >= 0
        np.add.at(diagonal, own[pair], 1.0)
        both, edge = pair & (other >= 0), pair & (other < 0)
        rows.append(own[both])
        columns.append(other[both])
        np.add.at(right, own[edge], cells[tuple(there)][edge])
    own, other = np.concatenate(rows), np.concatenate(columns)
    every = np.arange(count)
    matrix = coo_array(
        (
            np.concatenate((-np.ones(len(own)), diagonal)),
            (np.concatenate((own, every)), np.concatenate((other, every))),
        ),
        shape=(count, count),
    )
    result = cells.copy()
    result[free] = splu(matrix.tocsc()).solve(right)
    return result
