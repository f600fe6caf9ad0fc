"""Images changed to see whether the answer holds: bubbles and reflections drawn on them, all but the lesion blurred.

The paper reports accuracy lost "under simulated spots (bubbles, reflections)" without a generator;
this one is ours, seeded, and its only knob is the number of spots.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

BUBBLE_RADIUS = (0.025, 0.07)
"""Smallest and largest radius of a bubble over the image's shorter side."""
REFLECTION_RADIUS = (0.008, 0.022)
"""The same for the longer half-axis of a reflection."""
FIELD_LEVEL = 64
"""Pixels with a brighter channel than this belong to the field of view, not to the dark border."""
FIELD_REACH = 0.45
"""Centres lie in an ellipse of this half-axis over the side: overlays such as text and guide box are in the corners."""

SOFT_EDGE = 0.02
"""Width over the image's shorter side in which a sharp lesion goes over into the blurred background."""


def _centres(image: Image, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count, 2) rows and columns in the field of view."""
    height, width = image.shape[:2]
    y, x = np.ogrid[:height, :width]
    central = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5) <= FIELD_REACH
    rows, columns = np.nonzero(central & (image.max(axis=2) > FIELD_LEVEL))
    if len(rows) == 0:  # an image without light: anywhere in the middle
        rows, columns = np.nonzero(central)
    chosen = rng.integers(len(rows), size=count)
    return np.stack([rows[chosen], columns[chosen]], axis=1).astype(np.float64)


def _window(image: NDArray[np.float64], centre: NDArray[np.float64], reach: float) -> tuple[slice, slice]:
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, image.shape[:2]).astype(int)
    return slice(low[0], high[0]), slice(low[1], high[1])


def _step(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 inside (negative), 0 outside, one pixel of anti-aliasing between."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _bubble(canvas: NDArray[np.float64], centre: NDArray[np.float64], radius: float, rng: np.random.Generator) -> None:
    """A film sphere: faint pale inside, thin bright rim with a dark line in it, one highlight."""
    strength = rng.uniform(0.55, 0.9)
    angle = rng.uniform(0, 2 * np.pi)
    window = _window(canvas, centre, radius + 2)
    y, x = np.ogrid[window]
    distance = np.hypot(y - centre[0], x - centre[1])
    width = max(0.8, 0.09 * radius)
    inside = _step(distance - radius)
    rim = np.exp(-(((distance - (radius - width)) / width) ** 2)) * inside
    dark = np.exp(-(((distance - (radius - 3 * width)) / width) ** 2)) * inside
    spot = centre + 0.55 * radius * np.array([np.sin(angle), np.cos(angle)])
    highlight = np.exp(-(((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / (max(0.9, 0.16 * radius) ** 2)))
    patch = canvas[window]
    patch += (255 - patch) * (strength * (0.18 * inside + 0.65 * rim))[..., None].clip(0, 1)
    patch *= 1 - (0.3 * strength * dark)[..., None]
    patch += (255 - patch) * (0.95 * highlight * inside)[..., None]


def _reflection(
    canvas: NDArray[np.float64], centre: NDArray[np.float64], radius: float, rng: np.random.Generator
) -> None:
    """A saturated ellipse with a soft glow, as wet mucosa throws back the lamp."""
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.35, 0.9)
    reach = 2.5 * radius + 2
    window = _window(canvas, centre, reach)
    y, x = np.ogrid[window]
    along = (y - centre[0]) * np.sin(angle) + (x - centre[1]) * np.cos(angle)
    across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
    distance = np.hypot(along, across / aspect)
    core = _step(distance - radius)
    glow = 0.5 * np.exp(-((np.maximum(distance - radius, 0) / (0.6 * radius)) ** 2))
    alpha = np.maximum(core, glow)[..., None]
    canvas[window] += (np.array([255.0, 252.0, 246.0]) - canvas[window]) * alpha


def spots(image: Image, rng: np.random.Generator, count: int = 12) -> Image:
    """`image` with bubbles (every other spot) and specular reflections drawn on it.

    Args:
        image: (height, width, 3) RGB, uint8; it is not changed.
        rng: decides places, sizes and shapes; the same state gives the same image.
        count: number of spots; 0 gives a copy.

    Raises:
        ValueError: `image` is not (height, width, 3) uint8, or `count` is negative.
    """
    _check(image)
    if count < 0:
        raise ValueError(f"count: found {count}, wanted 0 or more")
    canvas = image.astype(np.float64)
    side = min(image.shape[:2])
    for number, centre in enumerate(_centres(image, rng, count) if count else ()):
        draw, (low, high) = (_bubble, BUBBLE_RADIUS) if number % 2 == 0 else (_reflection, REFLECTION_RADIUS)
        draw(canvas, centre, max(1.0, side * rng.uniform(low, high)), rng)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def blur_background(image: Image, mask: NDArray[np.bool_], sigma: float) -> Image:
    """`image` with all but the lesions blurred; the lesions' pixels are untouched.

    The blur is a Gaussian mean of the background's pixels alone, so that no colour of a lesion leaks out of its mask.
    Around the mask the blur sets in over `SOFT_EDGE`: a hard edge would be a cue of its own.

    Args:
        image: (height, width, 3) RGB, uint8; it is not changed.
        mask: (height, width) bool, the lesions.
        sigma: of the Gaussian, over the image's shorter side.

    Raises:
        ValueError: `image` is not (height, width, 3) uint8, `mask` is of another size or empty, or `sigma` is not positive.
    """
    _check(image)
    if mask.shape != image.shape[:2] or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(
            f"mask: found shape {mask.shape} of {mask.dtype} with {np.count_nonzero(mask)} pixels set, "
            f"wanted {image.shape[:2]} of bool with at least one"
        )
    if not sigma > 0:
        raise ValueError(f"sigma: found {sigma}, wanted a positive number")
    side = min(mask.shape)
    weight = (~mask).astype(np.float32)
    stacked = np.dstack([image * weight[..., None], weight])
    blurred = cv2.GaussianBlur(stacked, (0, 0), sigmaX=sigma * side)
    background = blurred[..., :3] / np.maximum(blurred[..., 3:], 1e-6)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    sharp = np.clip(1 - distance / max(1.0, SOFT_EDGE * side), 0, 1)[..., None]
    result = np.clip(np.rint(sharp * image + (1 - sharp) * background), 0, 255).astype(np.uint8)
    result[mask] = image[mask]
    return result


def _check(image: NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: found shape {image.shape} of {image.dtype}, wanted (height, width, 3) of uint8")
