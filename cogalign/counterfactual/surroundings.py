"""The intervention `background`: guide box, border, overlay text and hue change, the lesion stays byte for byte."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.interventions import Edited
from cogalign.counterfactual.masks import (
    DARK,
    Alpha,
    Image,
    Mask,
    corner_box,
    corners,
    dark_surround,
    feathered_alpha,
    lesion_radius,
)

BOX_COLOURS = (
    (40, 160, 70),
    (52, 82, 190),
    (196, 172, 44),
    (160, 52, 160),
    (44, 168, 172),
    (204, 110, 36),
    (150, 150, 158),
)
"""Colours of a painted guide box: green, blue, yellow, violet, cyan, orange, grey."""
BORDER_COLOURS = ((6, 6, 8), (34, 26, 52), (18, 44, 40), (52, 38, 20), (40, 40, 44))
"""Colours of a painted border: black, violet, green, brown, grey."""
HUE_DEGREES = (8.0, 24.0)
"""Least and most turn of the mucosa's hue."""
NEAR = 40.0
"""A new colour differs from the old one by at least so many grey levels in some channel."""
TEXT_HEIGHT = 0.045
"""Height of overlay letters over the shorter side of the image."""
TEXT_TRIES = 12
"""Places that are tried for overlay text; one that meets a lesion is not taken."""
CHANGES = ("box", "border", "hue", "text")


def background(image: Image, mask: Mask, rng: np.random.Generator) -> Edited:
    """Change one or more of guide box, border, overlay text and hue; the lesion's own pixels stay as they are.

    Args:
        image: H x W x 3 uint8, RGB.
        mask: H x W, all lesions.
        rng: chooses what is changed, and how.

    Returns:
        The edited image; `touched` is all but the lesions, `changed` names what was done.
    """
    radius = lesion_radius(mask)
    # The hue comes in over a soft edge outside the lesion, so that no cut shows.
    keep = feathered_alpha(mask, 0.0, max(2.0, 0.25 * radius)) if mask.any() else np.zeros(mask.shape, np.float32)
    box = corner_box(image)
    if box is not None:
        keep[box] = 1.0  # its colour comes from the tower, not from the camera
    chosen = [change for change in CHANGES if rng.random() < 2 / 3] or [str(rng.choice(CHANGES))]
    result = image
    if "hue" in chosen:
        degrees = float(rng.uniform(*HUE_DEGREES)) * (1.0 if rng.random() < 0.5 else -1.0)
        result = _turn_hue(result, degrees, keep)
    if "border" in chosen:
        painted = _paint_border(result, image, mask, rng)
        if painted is None:
            chosen.remove("border")
        else:
            result = painted
    if "box" in chosen or not chosen:
        painted = _paint_box(result, image, mask, rng)
        if painted is not None:
            result = painted
            chosen = sorted({*chosen, "box"})
        elif "box" in chosen:
            chosen.remove("box")
    if "text" in chosen:
        painted = _paint_text(result, mask, rng)
        if painted is None:
            chosen.remove("text")
        else:
            result = painted
    if not chosen:
        result, chosen = _turn_hue(image, HUE_DEGREES[1], keep), ["hue"]
    return Edited(np.where(mask[..., None], image, result), ~mask, changed=tuple(chosen))


def rotate_hue(image: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Turn RGB colours (H x W x 3, 0 to 255) about the grey axis: R + G + B stays, the hue moves."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3.0)
    same, back, forth = cosine + (1 - cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    turn = np.array([[same, back, forth], [forth, same, back], [back, forth, same]], dtype=np.float32)
    rotated: NDArray[np.float32] = cv2.transform(image, turn)
    return rotated


def _turn_hue(image: Image, degrees: float, keep: Alpha) -> Image:
    """The image with its hue turned where `keep` is 0."""
    old = image.astype(np.float32)
    mixed = old + (rotate_hue(old, degrees) - old) * (1.0 - keep)[..., None]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _other(
    colours: tuple[tuple[int, int, int], ...], old: NDArray[np.float64], least: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """One of the colours that is not like the old one."""
    table = np.asarray(colours, dtype=np.float32)
    far = table[np.abs(table - old).max(axis=1) >= least]
    chosen: NDArray[np.float32] = rng.choice(far if len(far) else table)
    return chosen


def _paint_border(result: Image, image: Image, mask: Mask, rng: np.random.Generator) -> Image | None:
    """Tint the dark surround of the visible field; None if there is next to none."""
    dark = dark_surround(image) & ~mask
    if float(dark.mean()) < 0.01:
        return None
    colour = _other(BORDER_COLOURS, np.median(image[dark], axis=0), 10.0, rng)
    soft = cv2.GaussianBlur(dark.astype(np.float32), (0, 0), max(0.6, 0.004 * min(image.shape[:2])))
    soft = np.where(dark, np.maximum(soft, 0.5), soft)[..., None]
    # Letters on the border stay readable: only what is darker than the new colour is lifted.
    mixed = result.astype(np.float32)
    mixed += soft * (colour - np.minimum(mixed, DARK * 2.0)) * (mixed.max(axis=-1, keepdims=True) < DARK * 2.5)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _paint_box(result: Image, image: Image, mask: Mask, rng: np.random.Generator) -> Image | None:
    """Recolour the guide box that is there, or paint one in a corner that holds no lesion; None if none is free."""
    found = corner_box(image)
    if found is not None and mask[found].any():
        found = None
    free = [window for window in corners(image.shape) if not mask[window].any()]
    window = found or (free[0] if free else None)
    if window is None:
        return None
    old = np.median(image[window].reshape(-1, 3), axis=0)
    colour = _other(BOX_COLOURS, old, NEAR, rng)
    drawn = result.copy()
    patch = np.empty_like(drawn[window], dtype=np.float32)
    patch[:] = colour
    if found is not None:
        # What is drawn in the box (the curve of the scope) stays as much paler than the box as it was.
        paler = (image[window].astype(np.float32) - old).mean(axis=-1, keepdims=True)
        patch += np.clip(paler / (255.0 - old.mean()), 0.0, 1.0) * (255.0 - colour) + np.minimum(paler, 0.0)
    else:
        _draw_scope(patch, colour, rng)
    drawn[window] = np.clip(np.rint(patch), 0, 255).astype(np.uint8)
    return drawn


def _paint_text(result: Image, mask: Mask, rng: np.random.Generator) -> Image | None:
    """Write a tower's overlay (date, time, form fields without a name) where no lesion lies; None if it fits nowhere."""
    height, width = mask.shape
    letters = max(5, round(TEXT_HEIGHT * min(height, width)))
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, letters, 1)
    lines = _overlay_lines(rng)
    sizes = [cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0] for line in lines]
    box_width, step = max(size[0] for size in sizes), round(1.7 * letters)
    box_height = step * len(lines)
    if box_width >= width or box_height >= height:
        return None
    for _ in range(TEXT_TRIES):
        # Towers write at the left or right edge.
        left = int(rng.integers(0, max(1, width // 20)))
        left = left if rng.random() < 0.5 else width - box_width - left
        top = int(rng.integers(0, height - box_height))
        window = (slice(top, top + box_height), slice(max(0, left), left + box_width))
        if mask[window].any():
            continue
        drawn = result.copy()
        for number, line in enumerate(lines):
            at = (max(0, left), top + number * step + letters)
            cv2.putText(drawn, line, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (232, 232, 226), 1, cv2.LINE_AA)
        return drawn
    return None


def _overlay_lines(rng: np.random.Generator) -> list[str]:
    """One to three lines as a tower shows them."""
    numbers = rng.integers((1, 1, 2008, 0, 0, 0), (29, 13, 2026, 24, 60, 60))
    day, month, year, hour, minute, second = (int(number) for number in numbers)
    lines = [
        f"{day:02d}/{month:02d}/{year}",
        f"{hour:02d}:{minute:02d}:{second:02d}",
        f"Eh:A{int(rng.integers(1, 9))} Cm:{int(rng.integers(0, 4))}",
        "D.O.B.:",
    ]
    return [lines[k] for k in rng.permutation(len(lines))[: int(rng.integers(1, 4))]]


def _draw_scope(patch: NDArray[np.float32], colour: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Draw the pale curve of a scope into a box."""
    side = patch.shape[0]
    t = np.linspace(0.0, 1.0, 12)
    x = side * (0.5 + 0.3 * rng.uniform(0.4, 1.0) * np.sin(t * np.pi * 1.6 + rng.uniform(0, 1)))
    y = side * (0.12 + 0.76 * t)
    points = np.round(np.stack((x, y), axis=-1) * 16).astype(np.int32).reshape(-1, 1, 2)
    pale = [float(value) for value in 0.35 * colour + 0.65 * 255]
    cv2.polylines(patch, [points], False, pale, max(1, side // 14), cv2.LINE_8, 4)
