"""Interventions: what is done to an image. Pure functions; the same generator state gives the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.fills import composite, fill_function, spread
from cogalign.counterfactual.masks import (
    Alpha,
    Image,
    Mask,
    dark_surround,
    feathered_alpha,
    grow,
    highlights,
    lesion_radius,
    lesions,
    reach,
    visible_mucosa,
)
from cogalign.counterfactual.placement import Place, find_place, move_pieces, turned
from cogalign.data.case import Box
from cogalign.recipe import Fill

RING = 0.35
"""Width of the ring of mucosa around a lesion whose colour is compared, over the lesion's radius."""
EDGE = 0.5
"""A transplant takes along this share of the operator's dilation: less of the old mucosa comes with the lesion."""
GENTLE = 0.35
"""Share of the colour match in the middle of a transplanted lesion."""
WIDEST = 0.8
"""Largest share of an image that a fill may touch: of less than a fifth the rest cannot be told."""
BLIND: tuple[Fill, ...] = ("gaussian_blur", "white")
"""Fills that do not ask what they may read."""
MOST_SHIFT = 70.0
"""A transplanted lesion's colour is moved by at most so many grey levels in a channel."""


@dataclass(frozen=True)
class Operator:
    """How an intervention paints; the widths are over the lesion's radius."""

    fill: Fill = "gaussian_blur"
    sigma: float = 0.5
    feather: float = 0.12
    dilate: float = 0.12
    diffusion_model: str | None = None

    def alpha(self, mask: Mask, radius: float) -> Alpha:
        """The soft mask (H x W float32) of a lesion; `radius` in pixels."""
        return feathered_alpha(mask, self.dilate * radius, self.feather * radius)

    def paint(self, image: Image, alpha: Alpha, radius: float, hidden: Mask, rng: np.random.Generator) -> Image:
        """The image with the fill inside `alpha`; `radius` in pixels, `hidden` pixels are not read (blur reads all)."""
        fill = fill_function(self.fill, self.diffusion_model)
        return fill(image, alpha, self.sigma * radius, hidden, rng)


@dataclass(frozen=True)
class Move:
    """A transplanted lesion: its box (xmin, ymin, xmax, ymax; pixels, exclusive) in the source and in the new image."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]


@dataclass(frozen=True)
class Edited:
    """A counterfactual image.

    Attributes:
        image: H x W x 3 uint8.
        touched: H x W; pixels beyond it equal the source's (transplant: the background's).
        moves: for a transplant, where each lesion went.
        changed: for a background intervention, what was changed: `box`, `border`, `hue`, `text`.
    """

    image: Image
    touched: Mask
    moves: tuple[Move, ...] = ()
    changed: tuple[str, ...] = ()


def stream(seed: int, case_id: str, intervention: str, index: int = 0) -> np.random.Generator:
    """The generator of one counterfactual: the same for the same arguments on every machine and in every order."""
    digest = sha256(f"{seed}\0{case_id}\0{intervention}\0{index}".encode()).digest()
    return np.random.default_rng(np.random.SeedSequence(list(np.frombuffer(digest, dtype="<u4"))))


def removal(
    image: Image, mask: Mask, operator: Operator, rng: np.random.Generator, others: Mask | None = None
) -> Edited | None:
    """The image with lesions painted over: do(lesion = 0).

    Args:
        image: H x W x 3 uint8.
        mask: H x W, the lesions that go.
        operator: fill and widths.
        rng: for fills with chance in them.
        others: H x W, lesions that stay; their pixels are neither changed nor read.

    Returns:
        The edited image, or None if the fill would cover most of the image (many spots, each with its margin), or reach
        into a lesion that stays.

    Raises:
        ValueError: the mask is empty.
    """
    radius = lesion_radius(mask)
    alpha = operator.alpha(mask, radius)
    if float(np.mean(alpha > 0)) > WIDEST:
        return None
    # Where mucosa can be seen takes longer to find than some fills take to paint.
    hidden = np.zeros_like(mask) if operator.fill in BLIND else ~visible_mucosa(image) | highlights(image)
    if others is not None:
        if np.any(others & (alpha > 0)):
            return None
        hidden |= others
    return Edited(operator.paint(image, alpha, radius, hidden, rng), alpha > 0)


def control(
    image: Image, mask: Mask, operator: Operator, rng: np.random.Generator, boxes: Sequence[Box] = ()
) -> Edited | None:
    """The same operator on the same shapes, moved and turned to lesion-free mucosa; the lesions stay as they are.

    Args:
        image: H x W x 3 uint8.
        mask: H x W, all lesions.
        operator: fill and widths.
        rng: chooses the place.
        boxes: boxes of the lesions, which tell what belongs together.

    Returns:
        The edited image, or None if there is no free place.
    """
    radius = lesion_radius(mask)
    alphas = [operator.alpha(lesion, radius) for lesion in lesions(mask, boxes)]
    visible = visible_mucosa(image)
    alpha = move_pieces(alphas, visible, mask, rng)
    if alpha is None:
        return None
    hidden = mask if operator.fill in BLIND else mask | ~visible | highlights(image)
    return Edited(operator.paint(image, alpha, radius, hidden, rng), alpha > 0)


def transplant(
    image: Image,
    mask: Mask,
    background: Image,
    background_mask: Mask | None,
    operator: Operator,
    rng: np.random.Generator,
    boxes: Sequence[Box] = (),
) -> Edited | None:
    """The lesions of one image on the mucosa of another, whose own lesions are removed first.

    Size over the shorter side is kept. To each lesion's colours a smooth membrane is added, spread inwards from the
    difference between new and old mucosa on the ring around it (after Poisson image editing, Perez et al. 2003): whole
    at the edge, so that no seam shows, and `GENTLE` of it in the middle, so that the lesion keeps its own colour.

    Args:
        image: H x W x 3 uint8, the image with the lesions.
        mask: H x W, its lesions.
        background: h x w x 3 uint8.
        background_mask: h x w, its lesions; None or empty if it has none.
        operator: fill (for the background's own lesions) and widths (for the soft edge too).
        rng: chooses the place.
        boxes: boxes of the lesions, which tell what belongs together.

    Returns:
        The background with the lesions, or None if one of them fits nowhere or the background cannot be cleared.
    """
    visible = visible_mucosa(background)
    touched = np.zeros(background.shape[:2], dtype=bool)
    result = background.copy()
    if background_mask is not None and background_mask.any():
        cleaned = removal(background, background_mask, operator, rng)
        if cleaned is None:
            return None
        result, touched = cleaned.image, cleaned.touched
    scale = min(background.shape[:2]) / min(image.shape[:2])
    radius = lesion_radius(mask)
    readable = visible_mucosa(image) & ~mask
    taken = np.zeros_like(touched)
    moves = []
    for lesion in lesions(mask, boxes):
        cut = _cut(image, lesion, readable, operator, radius, scale)
        inner = cut.alpha[reach(cut.alpha)]
        place = find_place(inner > 0, visible, taken, rng)
        if place is None:
            return None
        moves.append(Move(_box(lesion), _lay(result, taken, visible, cut, place, radius * scale)))
    return Edited(result, touched | taken, tuple(moves))


@dataclass(frozen=True)
class _Cut:
    """A lesion with its ring, cut out at the background's scale; all maps are h x w."""

    colours: NDArray[np.float32]
    alpha: Alpha
    core: Mask
    ring: Mask


def _cut(image: Image, lesion: Mask, readable: Mask, operator: Operator, radius: float, scale: float) -> _Cut:
    """Cut a lesion with its soft edge and the ring of mucosa around it out of its image."""
    alpha = feathered_alpha(lesion, EDGE * operator.dilate * radius, operator.feather * radius)
    # A black notch of the frame in a lesion stays behind.
    seen = cv2.erode((~dark_surround(image)).astype(np.float32), np.ones((3, 3), dtype=np.uint8))
    if np.any(lesion & (seen > 0)):
        alpha = alpha * cv2.blur(seen, (3, 3)) * seen
        lesion = lesion & (seen > 0)
    window = grow(reach(alpha), math.ceil(RING * radius), image.shape)
    colours, soft, core = image[window].astype(np.float32), alpha[window], lesion[window].astype(np.float32)
    ring = ((soft < 0.5) & readable[window]).astype(np.float32)
    if abs(scale - 1.0) > 1e-6:
        height, width = soft.shape
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        colours, soft, core, ring = (cv2.resize(part, size, interpolation=how) for part in (colours, soft, core, ring))
    return _Cut(colours, soft, core >= min(0.5, float(core.max())), ring > 0.99)


def _lay(
    result: Image, taken: Mask, visible: Mask, cut: _Cut, place: Place, radius: float
) -> tuple[int, int, int, int]:
    """Lay a cut lesion into `result` (changed in place, as is `taken`); returns the box of the lesion proper."""
    colours, alpha, core, ring = (turned(part, place.turn) for part in (cut.colours, cut.alpha, cut.core, cut.ring))
    inner = reach(alpha)
    # The place is that of the soft edge; the ring around it may hang over the border of the image and is cut there.
    top, left = place.top - inner[0].start, place.left - inner[1].start
    window = (
        slice(max(0, top), min(result.shape[0], top + alpha.shape[0])),
        slice(max(0, left), min(result.shape[1], left + alpha.shape[1])),
    )
    own = tuple(slice(side.start - start, side.stop - start) for side, start in zip(window, (top, left), strict=True))
    colours, alpha, core, ring = (part[own] for part in (colours, alpha, core, ring))
    old = result[window].astype(np.float32)
    both = ring & visible[window]
    depth = cv2.distanceTransform((alpha >= 0.5).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    share = GENTLE + (1.0 - GENTLE) * np.clip(1.0 - depth / (0.6 * radius), 0.0, 1.0)
    if both.any():
        membrane = np.clip(spread(old - colours, both, max(1.0, RING * radius)), -MOST_SHIFT, MOST_SHIFT)
        colours = colours + membrane * share[..., None]
    result[window] = composite(result[window], colours, alpha)
    taken[window] |= alpha > 0
    rows, columns = reach(core)
    return (
        window[1].start + columns.start,
        window[0].start + rows.start,
        window[1].start + columns.stop,
        window[0].start + rows.stop,
    )


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax of the set pixels, exclusive."""
    rows, columns = reach(mask)
    return columns.start, rows.start, columns.stop, rows.stop
