"""Does the edge of an edit show? Gradients on its ring against those of untouched mucosa. Pure functions."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.masks import Image, Mask, grow, lesion_radius, reach, visible_mucosa
from cogalign.counterfactual.placement import TURNS, turned

BAND = 0.12
"""Width of the ring inside the touched mask over its radius: with the usual widths the soft edge, where alpha is 0.5."""
LEAST_BAND = 2.0
"""Least width of the ring in pixels."""
TRIES = 48
"""Places at which a ring of the same shape is compared."""
SEEN = 0.6
"""A compared ring counts if at least this share of it lies on free mucosa."""
ENOUGH = 3
"""With fewer compared rings all free mucosa is the measure."""
FLOOR = 2.0
"""Gradient energies below this (grey levels squared: noise of the camera's coding) count as this."""
SMOOTH = 0.8
"""Sigma in pixels of the smoothing before the gradient: single noisy pixels are no seam."""
BRIGHTEST = 99.0
"""Energies are cut at this percentile of free mucosa, but not below `CUT`: reflections must not decide a mean."""
CUT = 2500.0


def ring(touched: Mask) -> Mask:
    """The band along the border of an edit: `BAND` of its radius inwards and one pixel outwards.

    Args:
        touched: H x W, where alpha > 0.

    Returns:
        H x W; the border of the image is no border of the edit. All False if nothing, or everything, is touched.
    """
    radius = lesion_radius(touched if 2 * np.count_nonzero(touched) <= touched.size else ~touched)
    width = max(LEAST_BAND, BAND * radius)
    inside = cv2.distanceTransform(touched.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    outside = cv2.distanceTransform((~touched).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.where(touched, inside <= width, outside <= 1.0)


def gradient_energy(image: Image) -> NDArray[np.float32]:
    """Squared length of the gradient of each pixel, the mean of the three channels; H x W float32.

    Grey levels squared per pixel squared, by Scharr's kernels after a light smoothing.
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), SMOOTH, borderType=cv2.BORDER_REFLECT_101)
    across = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 32, borderType=cv2.BORDER_REFLECT_101)
    down = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 32, borderType=cv2.BORDER_REFLECT_101)
    energy: NDArray[np.float32] = (across * across + down * down).mean(axis=-1)
    return energy


def seam_visibility(image: Image, source: Image, touched: Mask) -> float:
    """Gradient energy on the ring of an edit over what is usual: 1 is like elsewhere, more is a visible edge.

    E(image, ring) / max(median of E(source, ring moved and turned onto untouched mucosa), E(source, ring)), where E is
    the mean energy over a ring. The second term keeps a fold or a lesion's border that was there before from counting.
    Both terms are read from the source, so the fill cannot change the measure. A fill smoother than mucosa is below 1.

    Args:
        image: H x W x 3 uint8, the counterfactual.
        source: H x W x 3 uint8, the same image before the edit (transplant: the background).
        touched: H x W, where alpha > 0.

    Returns:
        The ratio; 1 where the edit has no border in the image.

    Raises:
        ValueError: the three have different sizes.
    """
    if image.shape != source.shape or image.shape[:2] != touched.shape:
        raise ValueError(f"seam: found sizes {image.shape[:2]}, {source.shape[:2]}, {touched.shape}, wanted one size")
    edge = ring(touched)
    if not edge.any():
        return 1.0
    after, before = gradient_energy(image), gradient_energy(source)
    near = cv2.dilate(touched.astype(np.uint8), np.ones((5, 5), dtype=np.uint8)) > 0
    free = visible_mucosa(source) & ~near
    cut = max(CUT, float(np.percentile(before[free], BRIGHTEST))) if free.any() else CUT
    after, before = np.minimum(after, cut), np.minimum(before, cut)
    usual = max(_elsewhere(before, edge, free), float(before[edge].mean()), FLOOR)
    return max(float(after[edge].mean()), FLOOR) / usual


def _elsewhere(energy: NDArray[np.float32], edge: Mask, free: Mask) -> float:
    """Median energy of rings of this shape on free mucosa; the mean of all free mucosa where hardly one fits."""
    window = reach(edge)
    shape = edge[window]
    means = []
    # The same tries for the same shape: the measure has no chance in it.
    rng = np.random.default_rng(0)
    for _ in range(TRIES):
        moved = turned(shape, int(rng.integers(TURNS)))
        room = [have - need for have, need in zip(energy.shape, moved.shape, strict=True)]
        if min(room) < 0:
            continue
        top, left = (int(rng.integers(space + 1)) for space in room)
        here = (slice(top, top + moved.shape[0]), slice(left, left + moved.shape[1]))
        chosen = moved & free[here]
        if np.count_nonzero(chosen) >= SEEN * np.count_nonzero(moved):
            means.append(float(energy[here][chosen].mean()))
    if len(means) >= ENOUGH:
        return float(np.median(means))
    if free.any():
        return float(energy[free].mean())
    around = grow(window, math.ceil(0.1 * max(edge.shape)), edge.shape)
    rest = ~edge[around]
    return float(energy[around][rest].mean()) if rest.any() else 0.0
