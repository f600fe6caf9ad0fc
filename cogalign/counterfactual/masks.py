"""Lesion masks: their size, their soft edge, their pieces, and where in the image mucosa can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.data.case import Box

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Alpha = NDArray[np.float32]

WORK_SIDE = 80
"""Longest side, in pixels, of the reduced maps on which mucosa and free places are looked for."""
DARK = 28
"""Pixels whose brightest channel is below this are border or lumen, not visible mucosa."""
GLARE = 215
"""Pixels whose darkest channel is above this are reflections."""
BOX_SIDE = 0.21
"""Side of a guide box over the shorter side of the image."""
MIN_FEATHER = 1e-3
"""A narrower soft edge, in pixels, is a hard edge."""
FLAT_LEVELS = 14
"""Pixels of a guide box differ from its median colour by at most so many grey levels."""


def lesion_radius(mask: Mask) -> float:
    """Radius, in pixels, of a disc with the area of the mask (0 for an empty mask)."""
    return math.sqrt(float(np.count_nonzero(mask)) / math.pi)


def area_problem(mask: Mask, min_area: float, max_area: float) -> str | None:
    """Why a mask is too small or too large to be trusted, or None if it is not.

    Args:
        mask: H x W.
        min_area: smallest share of the image's area.
        max_area: largest share of the image's area.
    """
    share = float(np.count_nonzero(mask)) / mask.size
    if share == 0:
        return "empty mask"
    if share < min_area:
        return "lesion smaller than min_area"
    if share == 1:
        return "full-frame mask"
    if share > max_area:
        return "lesion larger than max_area"
    return None


def reach(alpha: Alpha | Mask) -> tuple[slice, slice]:
    """Rows and columns of the smallest rectangle that holds all values above zero.

    Raises:
        ValueError: there is none.
    """
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    if width == 0:
        raise ValueError("mask: found no pixel of a lesion, wanted at least one")
    return slice(top, top + height), slice(left, left + width)


def grow(window: tuple[slice, slice], margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The window with `margin` more pixels on each side, cut at the borders of an image of this shape."""
    rows, columns = window
    return (
        slice(max(0, rows.start - margin), min(shape[0], rows.stop + margin)),
        slice(max(0, columns.start - margin), min(shape[1], columns.stop + margin)),
    )


def feathered_alpha(mask: Mask, dilate: float, feather: float) -> Alpha:
    """The opacity of a fill: 1 on the dilated mask, a smooth fall over the feather, exactly 0 beyond it.

    With d the distance to the mask, the opacity is s(t) = t^2 (3 - 2t) of t = (dilate + feather - d) / feather, cut to
    [0, 1]; it is 1 wherever d <= dilate.

    Args:
        mask: H x W, at least one pixel.
        dilate: growth of the mask in pixels, at least 0.
        feather: width of the soft edge in pixels, at least 0 (0 is a hard edge).

    Returns:
        H x W float32 in [0, 1].

    Raises:
        ValueError: the mask is empty.
    """
    window = grow(reach(mask), math.ceil(dilate + feather) + 1, mask.shape)
    outside = (~mask[window]).astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_5)
    if feather > MIN_FEATHER:
        t = np.clip((dilate + feather - distance) / feather, 0.0, 1.0)
        soft = t * t * (3.0 - 2.0 * t)
    else:
        soft = (distance <= dilate).astype(np.float32)
    soft[outside == 0] = 1.0
    alpha = np.zeros(mask.shape, dtype=np.float32)
    alpha[window] = soft
    return alpha


def cut_box(box: Box, shape: Sequence[int]) -> tuple[int, int, int, int] | None:
    """The part (xmin, ymin, xmax, ymax) of a box inside an image of this shape (height first); None if there is none."""
    xmin, ymin, xmax, ymax = max(0, box.xmin), max(0, box.ymin), min(shape[1], box.xmax), min(shape[0], box.ymax)
    return (xmin, ymin, xmax, ymax) if xmin < xmax and ymin < ymax else None


def pixels_in(mask: Mask, boxes: Sequence[Box]) -> list[int]:
    """How many pixels of the mask each box holds; boxes may reach beyond the image."""
    windows = [cut_box(box, mask.shape) for box in boxes]
    return [0 if cut is None else int(np.count_nonzero(mask[cut[1] : cut[3], cut[0] : cut[2]])) for cut in windows]


def lesions(mask: Mask, boxes: Sequence[Box] = ()) -> list[Mask]:
    """The lesions of a mask, one mask each, largest first.

    Connected parts go to the box that holds most of them (a lesion of many spots has one box). Without boxes, parts
    nearer than a fifth of the lesion's radius stay together. The masks do not overlap and cover the whole.
    """
    step = 0 if boxes else max(1, round(lesion_radius(mask) / 10))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * step + 1, 2 * step + 1))
    count, labels = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), kernel), connectivity=8)
    owners: dict[int, Mask] = {}
    for label in range(1, count):
        part: Mask = np.logical_and(mask, labels == label)
        held = pixels_in(part, boxes)
        owner = int(np.argmax(held)) if held and max(held) > 0 else -label
        owners[owner] = np.logical_or(owners[owner], part) if owner in owners else part
    return sorted(owners.values(), key=lambda part: -int(np.count_nonzero(part)))


def fill_holes(mask: Mask) -> Mask:
    """The mask with every hole filled that does not reach the image's border."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), dtype=np.uint8)
    padded[1:-1, 1:-1] = mask
    cv2.floodFill(padded, None, (0, 0), 2)
    filled: Mask = padded[1:-1, 1:-1] != 2
    return filled


def clean(mask: Mask, min_component: float) -> Mask:
    """The mask with its holes filled and without parts smaller than `min_component` of the image's area."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(fill_holes(mask).astype(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= max(1.0, min_component * mask.size)
    kept[0] = False
    cleaned: Mask = kept[labels] if count > 1 else np.zeros(mask.shape, dtype=bool)
    return cleaned


def reduction(shape: tuple[int, ...]) -> int:
    """The whole factor that brings an image of this shape to about `WORK_SIDE` pixels."""
    return max(1, round(max(shape[:2]) / WORK_SIDE))


def shrink_any(mask: Mask, factor: int) -> Mask:
    """Reduce a mask: a cell is set if any of its pixels is. The last row and column are padded with False."""
    if factor == 1:
        return mask
    height, width = (-(-side // factor) for side in mask.shape)
    padded = np.zeros((height * factor, width * factor), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    cells: Mask = np.asarray(padded.reshape(height, factor, width, factor).any(axis=(1, 3)))
    return cells


def corner_box(image: Image) -> tuple[slice, slice] | None:
    """The flat picture-in-picture (scope guide) in a corner of the frame, or None.

    A corner of `BOX_SIDE` of the shorter side is such a box if nearly all its pixels have the same colour, brighter
    than the border.

    Args:
        image: H x W x 3 uint8, RGB.

    Returns:
        Rows and columns of the corner, lower left first.
    """
    for window in corners(image.shape):
        patch = image[window][::2, ::2].reshape(-1, 3).astype(np.int16)
        median = np.median(patch, axis=0)
        flat = np.abs(patch - median).max(axis=1) <= FLAT_LEVELS
        if median.max() >= DARK and float(flat.mean()) >= 0.6:
            return window
    return None


def corners(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """The four corner squares in which a guide box is looked for or painted: lower left first, as scopes show it."""
    height, width = shape[:2]
    side = max(4, round(BOX_SIDE * min(height, width)))
    inset = round(0.02 * min(height, width))
    low, high = slice(inset, inset + side), slice(height - inset - side, height - inset)
    left, right = slice(inset, inset + side), slice(width - inset - side, width - inset)
    return [(high, left), (high, right), (low, left), (low, right)]


def dark_surround(image: Image) -> Mask:
    """Dark pixels that hang together with a corner or an edge of the frame."""
    dark = (image.max(axis=-1) < DARK * 2).astype(np.uint8)
    dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((3, 3), dtype=np.uint8))
    _, labels = cv2.connectedComponents(dark, connectivity=4)
    edge = np.unique(np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1])))
    touching = np.zeros(int(labels.max()) + 1, dtype=bool)
    touching[edge[edge > 0]] = True
    surround: Mask = touching[labels]
    return surround


def outside_box(image: Image, mask: Mask) -> Mask:
    """The mask without the pixels that a guide box in the corner hides."""
    box = corner_box(image)
    if box is None or not mask[box].any():
        return mask
    seen = mask.copy()
    seen[box] = False
    return seen


def highlights(image: Image) -> Mask:
    """Specular reflections with a margin: what is nearly white in all channels. They say nothing of the mucosa.

    Args:
        image: H x W x 3 uint8.
    """
    white = (image.min(axis=-1) > GLARE).astype(np.uint8)
    wide: Mask = cv2.dilate(white, np.ones((5, 5), dtype=np.uint8)) > 0
    return wide


def visible_mucosa(image: Image) -> Mask:
    """Where mucosa can be seen: bright, reddish, one connected field; no border, lumen, guide box or text.

    In white light mucosa is never greener or bluer than red. Where less than a fifth of the bright pixels are reddish
    (narrow-band light, dyes) colour is not used.

    Args:
        image: H x W x 3 uint8, RGB.

    Returns:
        H x W; cells of a reduced map (`reduction`), so its edges are blocky. May be all False.
    """
    height, width = image.shape[:2]
    factor = reduction(image.shape)
    size = (-(-width // factor), -(-height // factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.int16)
    red, green, blue = small[..., 0], small[..., 1], small[..., 2]
    bright = small.max(axis=-1) >= DARK
    reddish = bright & (red + 12 >= green) & (red + 12 >= blue)
    chosen = reddish if np.count_nonzero(reddish) * 5 >= np.count_nonzero(bright) else bright
    box = corner_box(image)
    if box is not None:
        chosen[tuple(slice(side.start // factor, -(-side.stop // factor)) for side in box)] = False
    kernel = np.ones((3, 3), dtype=np.uint8)
    # Closing joins the mucosa across letters and highlights; opening cuts thin bridges to coloured boxes.
    cells = cv2.morphologyEx(chosen.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    cells = cv2.morphologyEx(cells, cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(cells, connectivity=4)
    if count < 2:
        return np.zeros((height, width), dtype=bool)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    field = (labels == largest).repeat(factor, axis=0).repeat(factor, axis=1)
    visible: Mask = field[:height, :width]
    return visible
