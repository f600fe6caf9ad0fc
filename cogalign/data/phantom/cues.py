"""The background cues that can give a finding away: hue of the mucosa, border of the field, guide box.

They stand for what confounds real sets: another tower, another processor setting, the picture of the
scope guide that one hospital shows and another does not.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.data.phantom.fields import Image, grid, smoothstep

BOX_COLOURS = (
    (40, 160, 70),
    (52, 82, 190),
    (196, 172, 44),
    (160, 52, 160),
    (44, 168, 172),
    (204, 110, 36),
    (150, 150, 158),
)
"""Colour of the guide box for each finding, in the order of `spec.FINDINGS`."""
BOX_NAMES = ("green", "blue", "yellow", "violet", "cyan", "orange", "grey")
HUES = (0.0, 6.0, -6.0, 12.0, -12.0, 18.0, -18.0)
"""Rotation of the mucosa's hue in degrees for each finding."""
BORDERS = ("circle", "octagon", "square", "cut", "circle", "octagon", "square")
"""Shape of the visible field for each finding; the last three have a tinted surround."""
SURROUNDS = ((6, 6, 8), (6, 6, 8), (6, 6, 8), (6, 6, 8), (34, 26, 52), (18, 44, 40), (52, 38, 20))


def rotate_hue(image: Image, degrees: float) -> Image:
    """`image` [H, W, 3] (RGB, 0 to 255) turned about the grey axis: brightness stays, hue moves."""
    if degrees == 0:
        return image
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle) / np.sqrt(3.0)
    a, b, e = c + (1 - c) / 3, (1 - c) / 3 - s, (1 - c) / 3 + s
    turn = np.array([[a, b, e], [e, a, b], [b, e, a]], np.float32)
    return image @ turn.T


def field_of_view(size: int, border: str) -> Image:
    """Visible share `[size, size]` in [0, 1] of a field with the given border."""
    y, x = grid(size)
    u, v = np.abs(x - 0.5), np.abs(y - 0.5)
    if border == "circle":
        d = np.sqrt(u * u + v * v) / 0.485
    elif border == "octagon":
        d = np.maximum(np.maximum(u, v) / 0.47, (u + v) / 0.66)
    elif border == "square":
        d = (u**8 + v**8) ** 0.125 / 0.47
    else:  # cut: a circle whose top and bottom are cut off
        d = np.maximum(np.sqrt(u * u + v * v) / 0.5, v / 0.42)
    return smoothstep(d, 1.0, 1.0 - 3.0 / size)


def frame(rng: np.random.Generator, image: Image, cue: int) -> Image:
    """Put `image` into its field: surround, overlay text and the guide box in the lower left corner."""
    size = image.shape[0]
    visible = field_of_view(size, BORDERS[cue])[..., None]
    out = image * visible + np.asarray(SURROUNDS[cue], np.float32) * (1 - visible)
    drawn = np.ascontiguousarray(np.clip(out, 0, 255).astype(np.uint8))
    _overlay_text(rng, drawn)
    _guide_box(rng, drawn, BOX_COLOURS[cue])
    return drawn.astype(np.float32)


def _overlay_text(rng: np.random.Generator, image: NDArray[np.uint8]) -> None:
    """A date and a counter as processors burn in; they tell nothing."""
    size = image.shape[0]
    day, month, frame_number = rng.integers(1, 29), rng.integers(1, 13), rng.integers(100, 999)
    scale = size / 128 * 0.24
    ink = (206.0, 206.0, 200.0)
    cv2.putText(
        image, f"{day:02d}/{month:02d}", (round(0.015 * size), round(0.06 * size)), 0, scale, ink, 1, cv2.LINE_AA
    )
    cv2.putText(image, f"{frame_number}", (round(0.85 * size), round(0.06 * size)), 0, scale, ink, 1, cv2.LINE_AA)


def _guide_box(rng: np.random.Generator, image: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    """A coloured box with the pale curve of the scope in it."""
    size = image.shape[0]
    side, left, top = round(0.21 * size), round(0.02 * size), round(0.77 * size)
    image[top : top + side, left : left + side] = colour
    t = np.linspace(0, 1, 12)
    bend = rng.uniform(0.5, 1.0)
    xs = left + side * (0.5 + 0.32 * bend * np.sin(t * np.pi * 1.6 + rng.uniform(0, 1)))
    ys = top + side * (0.12 + 0.76 * t)
    points = np.round(np.stack([xs, ys], -1) * 16).astype(np.int32).reshape(-1, 1, 2)
    pale = tuple(0.35 * c + 0.65 * 255 for c in colour)
    cv2.polylines(image, [points], False, pale, max(1, size // 64), cv2.LINE_AA, 4)
