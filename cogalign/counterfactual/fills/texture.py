"""Patch-based fill: the shading of the surroundings, and on it vessels and grain of the same image's mucosa."""

from __future__ import annotations

import math

import cv2
import numpy as np

from cogalign.counterfactual.fills.blur import spread
from cogalign.counterfactual.fills.composite import Hole, find_hole, paste, pieces, within
from cogalign.counterfactual.fills.membrane import membrane
from cogalign.counterfactual.fills.quilt import Map, quilt
from cogalign.counterfactual.masks import Alpha, Image, Mask, grow, reach

DETAIL = 0.3
"""What is finer than this, over the radius of the region, is copied; what is coarser continues the surroundings."""
SEARCH = 3.0
"""Margin of the window in which patches are looked for, over the radius of the region."""
LEAST_SEARCH = 24
"""That margin is at least so many pixels."""
GAIN = (0.5, 1.5)
"""Copied detail is made at most so much weaker or stronger to suit the brightness of its new place."""
GRAIN_SIGMA = 1.2
"""What a blur this wide, in pixels, takes away is called grain."""
NEAR = 0.5
"""Width of the surroundings that shading and grain are taken from, over the radius of the region."""
RIM = 0.15
"""Width of the rim on which detail and surroundings are fitted to each other, over the radius of the region."""
DARKER = 0.6
"""Pixels darker than this share of the brightness around the region are lumen or shadow: they are not continued."""
BRIGHTER = 1.7
"""Nor is detail taken from where it is brighter than this many times that brightness."""
STRANGE = 4.5
"""Detail stronger than this many times its median is no plain mucosa: patches with it are avoided."""
LEAST_STRANGE = 8.0
"""That limit is at least so many grey levels."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def texture(
    image: Image,
    alpha: Alpha,
    sigma: float,
    hidden: Mask | None,
    rng: np.random.Generator,
) -> Image:
    """Mucosa of the same image: smooth shading continued from around, with detail copied from elsewhere.

    The image is split at `DETAIL` of the region's radius. The coarse part is continued over the region as
    `surround_blur` does; the fine part is one patch in the region's shape or a quilt of several (`quilt`), as strong
    as the light at its new place makes it. Where too little mucosa can be read for a patch, grain as strong as
    that of the surroundings takes its place.

    Args:
        image: H x W x 3 uint8.
        alpha: H x W float32 in [0, 1]; pixels above 0 are not read.
        sigma: not used.
        hidden: H x W, further pixels that must not be read (other lesions, black border, highlights), or None.
        rng: chooses among patches that fit equally well.

    Raises:
        ValueError: the mask is empty, or covers the whole image.
    """
    del sigma
    window = reach(alpha)
    painted = image[window].astype(np.float32)
    for region in pieces(alpha):
        radius = math.sqrt(np.count_nonzero(region) / math.pi)
        hole = find_hole(alpha, hidden, max(LEAST_SEARCH, math.ceil(SEARCH * radius)), region)
        filled = _fill(image[hole.around].astype(np.float32), hole, rng)
        painted[region[window]] = filled[within(hole.window, hole.around)][region[hole.window]]
    return paste(image, painted, alpha, window, window)


def _fill(values: Map, hole: Hole, rng: np.random.Generator) -> Map:
    """The values with the region filled: coarse part plus detail."""
    coarse = spread(values, hole.known, max(1.0, DETAIL * hole.radius))
    detail = np.where(hole.known[..., None], values - coarse, np.float32(0))
    light = cv2.transform(coarse, LUMA[None])
    near = _near(hole)
    usual = float(np.median(light[near]))
    dark, bright = light < DARKER * usual, light > BRIGHTER * usual
    strange, limit = _strange(detail, hole.known)
    rim = _with_rim(hole)
    made = quilt(np.clip(detail, -limit, limit), coarse, rim, hole.known & ~dark & ~bright & ~strange, rng)
    inner = within(rim.window, rim.around)
    if made is None:
        copied = _grain(detail, near, rim.region[inner].shape, rng)
    else:
        copied = made[0] * np.clip(light[inner] / np.maximum(made[1] @ LUMA, 1.0), *GAIN)[..., None]
        copied *= min(1.0, _strength(detail[near]) / max(_strength(copied), 1e-3))
    result = values.copy()
    result[inner] = copied + _shading(values[inner] - copied, hole.known[inner], dark[inner], coarse[inner])
    return result


def _with_rim(hole: Hole) -> Hole:
    """The hole with a rim of its surroundings, on which what was copied is fitted to what is there."""
    width = max(2, math.ceil(RIM * hole.radius))
    shape = (hole.around[0].stop, hole.around[1].stop)
    rows, columns = grow(hole.window, width, shape)
    window = (
        slice(max(rows.start, hole.around[0].start), rows.stop),
        slice(max(columns.start, hole.around[1].start), columns.stop),
    )
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    region = cv2.dilate(hole.region.astype(np.uint8), kernel) > 0
    return Hole(window, hole.around, np.asarray(region), hole.known)


def _shading(rest: Map, known: Mask, dark: Mask, coarse: Map) -> Map:
    """What is missing to the copied detail, continued from the rim; `coarse` where nothing there may be read."""
    for readable in (known & ~dark, known):
        if readable.any():
            return membrane(rest, readable)
    return coarse


def _near(hole: Hole) -> Mask:
    """The pixels that may be read next to the region, or all that may be read."""
    distance = cv2.distanceTransform((~hole.region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    near: Mask = hole.known & (distance <= max(2.0, NEAR * hole.radius))
    return near if near.any() else hole.known


def _strength(detail: Map) -> float:
    """How strong the detail usually is: robust against the few strong edges."""
    return float(np.median(np.abs(detail.reshape(-1, 3)).mean(axis=-1)))


def _strange(detail: Map, known: Mask) -> tuple[Mask, float]:
    """Pixels with detail far stronger than is usual here (edges of folds, highlights, letters), and the limit."""
    strength = np.abs(cv2.transform(detail, LUMA[None]))
    limit = max(STRANGE * float(np.median(strength[known][::7])), LEAST_STRANGE)
    strange: Mask = strength > limit
    return strange, limit


def _grain(detail: Map, near: Mask, shape: tuple[int, ...], rng: np.random.Generator) -> Map:
    """Noise (h x w x 3) as strong, in each channel, as the finest part of the detail on `near` (H x W)."""
    fine = detail - cv2.GaussianBlur(detail, (0, 0), GRAIN_SIGMA)
    # From the median, which the few strong edges do not move.
    strength = 1.4826 * np.median(np.abs(fine[near]), axis=0)
    # Noise of photographs is mostly shared by the channels: 0.9^2 + 0.44^2 = 1.
    noise = 0.9 * rng.standard_normal((*shape, 1)) + 0.44 * rng.standard_normal((*shape, 3))
    grain: Map = (noise * strength).astype(np.float32)
    return grain
