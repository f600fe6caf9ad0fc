"""Mucosa of the phantom: colour, folds, vessels, lumen and light of each organ."""

from __future__ import annotations

import cv2
import numpy as np

from cogalign.data.phantom.fields import Image, branch, grid, mix, noise, smoothstep, strokes

COLOURS = {
    "esophagus": (222.0, 164.0, 150.0),
    "stomach": (206.0, 108.0, 84.0),
    "small_bowel": (214.0, 152.0, 98.0),
    "colon": (218.0, 128.0, 120.0),
}
"""Mean colour of the mucosa, RGB in 0 to 255."""
VESSELS = {"esophagus": 3, "stomach": 1, "small_bowel": 0, "colon": 5}
"""Vessel trees seen through the mucosa."""


def _folds(rng: np.random.Generator, organ: str, size: int, lumen: tuple[float, float], warp: Image) -> Image:
    """Brightness of the folds `[size, size]` in about [-1, 1]: ridges bright, furrows dark."""
    y, x = grid(size)
    dy, dx = y - lumen[0], x - lumen[1]
    r = np.sqrt(dy * dy + dx * dx)
    theta = np.arctan2(dy, dx)
    phase = rng.uniform(0, 2 * np.pi)
    if organ == "colon":  # haustra: a few thick arcs around the lumen, open towards one side
        rings = np.cos(2 * np.pi * (np.sqrt(r + 0.02) * rng.uniform(4.0, 5.0) + 0.10 * warp) + phase)
        return smoothstep(rings, 0.1, 1.0) * 1.6 * (0.75 + 0.25 * np.cos(3 * theta + phase)) - 0.6
    if organ == "small_bowel":  # valvulae: many thin rings
        rings = np.cos(2 * np.pi * (r * rng.uniform(8.0, 10.0) + 0.10 * warp) + phase)
        return smoothstep(rings, 0.3, 1.0) * 1.4 - 0.5
    if organ == "esophagus":  # longitudinal folds run into the lumen
        spokes = np.cos(rng.integers(5, 8) * theta + 0.9 * warp + phase)
        return spokes * smoothstep(r, 0.05, 0.45)
    bends = np.cos(2 * np.pi * ((dx * np.cos(phase) + dy * np.sin(phase)) * rng.uniform(3.0, 4.0) + 0.32 * warp))
    return smoothstep(bends, -0.2, 1.0) * 1.7 - 0.9  # stomach: thick winding rugae


def mucosa(rng: np.random.Generator, organ: str, size: int, surface: str) -> tuple[Image, tuple[float, float]]:
    """The wall of the organ `[size, size, 3]` in 0 to 255 without lesions, and the lumen's (y, x)."""
    y, x = grid(size)
    base = np.asarray(COLOURS[organ], np.float32) + rng.normal(0, 5, 3).astype(np.float32)
    side = rng.uniform(0, 2 * np.pi)
    lumen = (0.5 + 0.34 * np.sin(side), 0.5 + 0.34 * np.cos(side))
    warp = noise(rng, size, 4)
    image = np.empty((size, size, 3), np.float32)
    image[:] = base
    image += (noise(rng, size, 5) * 7)[..., None] * np.array([1.0, 0.9, 0.8], np.float32)
    fine = noise(rng, size, size // 3) * (5.5 if surface == "granular" else 1.6)
    folds = _folds(rng, organ, size, lumen, warp)
    depth = {"colon": 21.0, "small_bowel": 15.0, "esophagus": 14.0, "stomach": 26.0}[organ]
    image += (folds * depth + fine)[..., None] * np.array([1.0, 0.85, 0.8], np.float32)
    if VESSELS[organ]:
        paths, widths = [], []
        for _ in range(VESSELS[organ]):
            start = tuple(rng.uniform(0.1, 0.9, 2))
            new, thick = branch(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.4), 2)
            paths += new
            widths += [0.008 * w for w in thick]
        image = mix(image, base * np.array([0.72, 0.45, 0.45], np.float32), 0.5 * strokes(size, paths, widths, 0.006))
    r = np.sqrt((y - lumen[0]) ** 2 + (x - lumen[1]) ** 2)
    dark = 1.0 - smoothstep(r, 0.02, 0.17 + 0.03 * rng.random())
    return mix(image, base * 0.16, 0.9 * dark), lumen


def light(rng: np.random.Generator, image: Image) -> Image:
    """Uneven light of the endoscope's lamp: brighter in the middle, with a drifting centre."""
    size = image.shape[0]
    y, x = grid(size)
    cy, cx = 0.5 + rng.normal(0, 0.05, 2)
    r2 = (y - cy) ** 2 + (x - cx) ** 2
    return image * (1.16 - 1.35 * r2)[..., None]


def highlights(rng: np.random.Generator, image: Image, view: str) -> Image:
    """Specular reflections and, in the view `bubbles`, thin-walled bubbles with a glint."""
    size = image.shape[0]
    glow = np.zeros((size, size), np.float32)
    count = int(rng.integers(12, 20)) if view == "reflections" else int(rng.integers(1, 4))
    canvas = np.zeros((size, size), np.uint8)
    for _ in range(count):
        centre = (rng.uniform(0.14, 0.86, 2) * size * 16).astype(int)
        axes = (np.array([rng.uniform(0.006, 0.018), rng.uniform(0.005, 0.010)]) * size * 16).astype(int)
        cv2.ellipse(canvas, centre.tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA, 4)
    glow = np.maximum(glow, canvas.astype(np.float32) / 255.0)
    image = mix(image, np.array([255.0, 252.0, 246.0], np.float32), cv2.GaussianBlur(glow, (0, 0), 0.004 * size))
    if view != "bubbles":
        return image
    rims = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(7, 12))):
        centre = (rng.uniform(0.15, 0.85, 2) * size * 16).astype(int)
        radius = rng.uniform(0.014, 0.038) * size * 16
        cv2.circle(rims, centre.tolist(), int(radius), 190, max(1, size // 128), cv2.LINE_AA, 4)
        glint = (centre - radius * 0.45).astype(int)
        cv2.circle(rims, glint.tolist(), max(8, int(radius * 0.2)), 255, -1, cv2.LINE_AA, 4)
    return mix(image, np.array([250.0, 244.0, 226.0], np.float32), 0.8 * rims.astype(np.float32) / 255.0)
