"""Lesions of the phantom: shape, relief, surface and vessels; each painter returns the image and a mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cogalign.data.phantom.fields import Image, branch, grid, mix, noise, smoothstep, strokes
from cogalign.data.phantom.spec import LesionSpec

Mask = NDArray[np.bool_]
Painted = tuple[Image, Mask]
LIGHT = np.array([-0.6, -0.5], np.float32)
"""Direction (y, x) towards the lamp, for shading of raised lesions."""


def _rgb(*values: float) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def _polar(
    spec: LesionSpec, size: int, stretch: float = 1.0, rough: float = 0.05, waves: int = 5
) -> tuple[Image, Image, Image]:
    """Distance from the centre over the lesion's own radius (1 on its edge), and offsets (y, x) over the radius."""
    rng = np.random.default_rng(spec.seed)
    y, x = grid(size)
    dy, dx = (y - spec.y) / spec.radius, (x - spec.x) / spec.radius
    c, s = np.cos(spec.angle), np.sin(spec.angle)
    u, v = (c * dx + s * dy) / stretch, (c * dy - s * dx) * stretch
    theta = np.arctan2(v, u)
    edge = np.ones_like(theta)
    for k in range(2, waves + 1):
        edge += rough * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) * rng.uniform(0.5, 1.0)
    return np.sqrt(u * u + v * v) / edge, dy, dx


def _relief(d: Image, dy: Image, dx: Image, height: float) -> Image:
    """Lambert-like shading in about [-1, 1] of a dome that ends at d = 1."""
    slope = height * np.clip(d, 0, 1) ** 1.5
    r = np.sqrt(dy * dy + dx * dx) + 1e-3
    return -(dy * LIGHT[0] + dx * LIGHT[1]) / r * -slope


def _shadow(image: Image, d: Image, dy: Image, dx: Image, strength: float) -> Image:
    """A contact shadow on the side away from the lamp."""
    away = smoothstep(-(dy * LIGHT[0] + dx * LIGHT[1]), -0.2, 1.0)
    ring = smoothstep(d, 1.30, 1.0) * smoothstep(d, 0.85, 1.0)
    return image * (1.0 - strength * ring * away)[..., None]


def _polyp(image: Image, spec: LesionSpec) -> Painted:
    size = image.shape[0]
    rng = np.random.default_rng(spec.seed + 1)
    d, dy, dx = _polar(spec, size, stretch=1.08, rough=0.025)
    mask = d < 1.0
    if spec.variant == "pedunculated":  # a stalk behind the head
        end = np.array(
            [spec.x - 1.7 * spec.radius * np.cos(spec.angle), spec.y - 1.7 * spec.radius * np.sin(spec.angle)]
        )
        path = np.stack([np.array([spec.x, spec.y]), end]).astype(np.float32)
        stalk = strokes(size, [path], [0.75 * spec.radius], 0.006)
        image = mix(image, _rgb(196, 98, 92), 0.9 * stalk)
        mask |= stalk > 0.5
    image = _shadow(image, d, dy, dx, 0.55)
    shade = _relief(d, dy, dx, 1.0)
    colour = _rgb(214, 92, 88) + shade[..., None] * _rgb(60, 52, 48)
    colour = colour + (noise(rng, size, size // 4) * 4)[..., None]
    image = mix(image, colour, smoothstep(d, 1.03, 0.93))
    gy, gx = dy - 0.38 * LIGHT[0], dx - 0.38 * LIGHT[1]
    glint = np.exp(-(gy * gy + gx * gx) / 0.045)
    return mix(image, _rgb(255, 240, 232), 0.85 * glint), mask


def _ulcer(image: Image, spec: LesionSpec) -> Painted:
    size = image.shape[0]
    rng = np.random.default_rng(spec.seed + 1)
    d, dy, dx = _polar(spec, size, stretch=1.35 if spec.variant == "oval" else 1.0, rough=0.06)
    image = mix(image, _rgb(158, 44, 40), 0.85 * smoothstep(d, 1.06, 0.90))
    base = _rgb(232, 220, 170) + (noise(rng, size, size // 5) * 9)[..., None] * _rgb(1, 1, 0.7)
    base = base - (_relief(d, dy, dx, 1.0)[..., None] * _rgb(26, 26, 24))
    return mix(image, base, smoothstep(d, 0.80, 0.68)), d < 1.03


def _erosion(image: Image, spec: LesionSpec) -> Painted:
    """Several small shallow breaks: pale centres, red halos, spread over the lesion's radius."""
    size = image.shape[0]
    rng = np.random.default_rng(spec.seed + 1)
    y, x = grid(size)
    count = 3 if spec.variant == "few" else int(rng.integers(6, 8))
    mask = np.zeros((size, size), bool)
    turn = rng.uniform(0, 2 * np.pi)
    for k in range(count):
        reach = 0.0 if k == 0 else rng.uniform(0.75, 1.0)
        angle = turn + 2 * np.pi * k / max(1, count - 1)
        cy = spec.y + reach * spec.radius * np.sin(angle)
        cx = spec.x + reach * spec.radius * np.cos(angle)
        r = spec.radius * rng.uniform(0.27, 0.36)
        d = np.sqrt((y - cy) ** 2 + (x - cx) ** 2) / r
        image = mix(image, _rgb(186, 52, 46), 0.75 * smoothstep(d, 1.35, 0.75))
        image = mix(image, _rgb(238, 214, 190), 0.95 * smoothstep(d, 0.75, 0.45))
        mask |= d < 1.3
    return image, mask


def _angiectasia(image: Image, spec: LesionSpec) -> Painted:
    """A flat tuft of dilated vessels: bright red branches or dots from a common centre."""
    size = image.shape[0]
    rng = np.random.default_rng(spec.seed + 1)
    d, _, _ = _polar(spec, size, rough=0.03)
    red = _rgb(216, 18, 34)
    image = mix(image, _rgb(224, 84, 84), 0.55 * smoothstep(d, 1.0, 0.2))
    if spec.variant == "branching":
        paths, widths = [], []
        for k in range(7):
            heading = spec.angle + 2 * np.pi * k / 7 + rng.normal(0, 0.15)
            new, thick = branch(rng, (spec.x, spec.y), heading, 0.85 * spec.radius, 1, 0.3)
            paths += new
            widths += [0.016 * w for w in thick]
        alpha = strokes(size, paths, widths, 0.004) * smoothstep(d, 1.05, 0.95)
    else:
        y, x = grid(size)
        alpha = np.zeros((size, size), np.float32)
        for k in range(14):
            reach = spec.radius * np.sqrt((k + 0.5) / 14) * 0.9
            angle = spec.angle + 2.4 * k
            r = np.sqrt((y - spec.y - reach * np.sin(angle)) ** 2 + (x - spec.x - reach * np.cos(angle)) ** 2)
            alpha = np.maximum(alpha, smoothstep(r, 0.021, 0.011))
    return mix(image, red, np.clip(1.5 * alpha, 0, 1)), d < 1.03


def _bleeding(image: Image, spec: LesionSpec) -> Painted:
    """Fresh blood: a dark red pool, or a streak that runs down the wall."""
    size = image.shape[0]
    rng = np.random.default_rng(spec.seed + 1)
    d, _, _ = _polar(spec, size, stretch=1.7 if spec.variant == "streak" else 1.05, rough=0.13, waves=6)
    thickness = noise(rng, size, size // 8) * 7
    colour = _rgb(116, 6, 12) + thickness[..., None] * _rgb(1.0, 0.3, 0.3)
    image = mix(image, colour, 0.97 * smoothstep(d, 1.05, 0.85))
    gloss = smoothstep(noise(rng, size, size // 9), 1.35, 1.9) * smoothstep(d, 0.9, 0.6)
    return mix(image, _rgb(255, 214, 208), 0.75 * gloss), d < 1.05


def _tumor(image: Image, spec: LesionSpec) -> Painted:
    """An irregular mass: purple-brown, nodular, or with a depressed dark centre."""
    size = image.shape[0]
    rng = np.random.default_rng(spec.seed + 1)
    d, dy, dx = _polar(spec, size, stretch=1.1, rough=0.10, waves=7)
    image = _shadow(image, d, dy, dx, 0.5)
    knobs = noise(rng, size, size // 6)
    gy, gx = np.gradient(knobs)
    bumps = -(gy * LIGHT[0] + gx * LIGHT[1]) * size / 30.0
    colour = _rgb(148, 78, 92) + (_relief(d, dy, dx, 1.0) * 24 - bumps * 17 + knobs * 9)[..., None]
    image = mix(image, colour, smoothstep(d, 1.03, 0.93))
    if spec.variant == "depressed":
        image = mix(image, _rgb(74, 36, 44), 0.85 * smoothstep(d, 0.55, 0.35))
    return image, d < 1.02


PAINTERS: dict[str, Callable[[Image, LesionSpec], Painted]] = {
    "polyp": _polyp,
    "ulcer": _ulcer,
    "erosion": _erosion,
    "angiectasia": _angiectasia,
    "bleeding": _bleeding,
    "tumor": _tumor,
}


def paint(image: Image, spec: LesionSpec) -> Painted:
    """Lay one lesion on `image` [H, W, 3]; returns the new image and the lesion's mask [H, W]."""
    return PAINTERS[spec.finding](image, spec)
