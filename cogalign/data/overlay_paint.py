"""Burned-in letters and corner boxes painted over in an image, and those of another image drawn into it.

Letters are painted over stroke by stroke, from the pixels beside them (Telea's inpainting). Corner boxes are filled with the mirror image
of what lies beside them: it joins at the edges and keeps the texture, where inpainting would leave a smear of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.data.overlay_detection import MIN_RISE, Box4, Image, Overlays

MIN_STROKE = 8
"""A stroke is so many grey levels above what is around it; lower than in detection, since it is known that letters are here."""
MARGIN = 0.008
"""Boxes grow by this share of the shorter side: their edges are blurred where the image was made smaller."""
NEAR = 12
"""How far around a line of text other letters are looked for, in heights of its letters: too few for a line of their own."""
DARK = 60
"""Where no channel is above this there are no reflections: what is bright there is a letter."""
COLOURLESS = 45
"""Channels of a letter on mucosa differ by no more than this."""
FRAME = 0.04
"""A dark frame around a corner box is no wider than this share of the shorter side."""
FRAME_LEVEL = 50
"""No channel of a frame is above this."""
MOST_OF_LESION = 0.05
"""A corner box is drawn where it hides no more than this share of the lesions, if there is such a corner."""
Mask = NDArray[np.bool_]
_Part = tuple[slice, slice]


def paint_over(image: Image, overlays: Overlays) -> Image:
    """The image without its overlays.

    Args:
        image: (height, width, 3) uint8, RGB.
        overlays: boxes in pixels of the image.
    """
    height, width = image.shape[:2]
    margin = max(1, round(MARGIN * min(height, width)))
    strokes = np.zeros((height, width), dtype=np.uint8)
    for box in overlays.text:
        part = _part(_grown(box, 2 * margin, width, height))
        strokes[part] |= _rise(image[part], box[3] - box[1]) >= MIN_STROKE
        near, others = _other_letters(image, box)
        strokes[near] |= others
    found = image
    if strokes.any():
        # The fringes of letters would be drawn into the holes.
        wide = cv2.dilate(strokes, np.ones((2 * margin + 1, 2 * margin + 1), dtype=np.uint8))
        found = cv2.inpaint(found, wide, max(2, margin), cv2.INPAINT_TELEA)
    boxes = [_grown(_with_frame(image, box), margin, width, height) for box in overlays.guide_box]
    hidden = np.zeros((height, width), dtype=bool)
    for box in boxes:
        hidden[_part(box)] = True
    return _filled(found, boxes, hidden)


def draw_overlays(image: Image, donor: Image, overlays: Overlays, lesion: Mask | None = None) -> tuple[Image, Overlays]:
    """The image with the overlays of another one, at the same places relative to its size, and where they are now.

    A corner box that would hide the lesion goes to the corner where it hides least of it. Letters are drawn anywhere: they are thin.

    Args:
        image: (height, width, 3) uint8, RGB, as a rule without overlays of its own.
        donor: the other image, any size.
        overlays: boxes in pixels of the donor.
        lesion: (height, width), true on lesions.
    """
    found = image.copy()
    height, width = image.shape[:2]
    boxes, text = [], []
    for box in overlays.guide_box:
        target = _free_corner(_moved(box, donor.shape, image.shape), lesion, width, height)
        found[_part(target)] = _resized(donor[_part(box)], target)
        boxes.append(target)
    for box in overlays.text:
        grown = _grown(box, 1, donor.shape[1], donor.shape[0])
        colour, cover = _letters(donor[_part(grown)], box[3] - box[1])
        target = _moved(grown, donor.shape, image.shape)
        share = _resized(cover, target)[..., None]
        part = _part(target)
        found[part] = np.rint(found[part] * (1 - share) + colour * share).astype(np.uint8)
        text.append(_moved(box, donor.shape, image.shape))
    return found, Overlays(tuple(text), tuple(boxes))


def _rise(image: Image, letter: int) -> NDArray[np.uint8]:
    """How many grey levels each pixel lies above its surroundings, in its darkest channel; letters have no colour."""
    side = max(5, letter | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
    return np.asarray(
        cv2.morphologyEx(np.ascontiguousarray(image.min(axis=-1)), cv2.MORPH_TOPHAT, kernel), dtype=np.uint8
    )


def _other_letters(image: Image, box: Box4) -> tuple[_Part, NDArray[np.bool_]]:
    """Strokes near a line of text, as bright as `overlay_detection` wants them: on dark ground, or in its column.

    Returns:
        The part of the image that was looked at, and where in it the strokes are.
    """
    height, width = image.shape[:2]
    letter = box[3] - box[1]
    area = _grown(box, NEAR * letter, width, height)
    near = image[_part(area)]
    rise = _rise(near, letter)
    side = max(5, letter | 1)
    ground = cv2.morphologyEx(
        np.ascontiguousarray(near.max(axis=-1)), cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
    )
    strokes = (rise >= MIN_RISE) & (ground <= DARK)
    column = slice(max(0, box[0] - area[0] - letter), box[2] - area[0] + letter)
    pixels = near[:, column]
    plain = pixels.max(axis=-1).astype(np.int16) - pixels.min(axis=-1) <= COLOURLESS
    strokes[:, column] |= (rise[:, column] >= MIN_RISE) & plain
    return _part(area), strokes


def _with_frame(image: Image, box: Box4) -> Box4:
    """The box with the dark frame around it, on each side where there is one."""
    height, width = image.shape[:2]
    most = max(2, round(FRAME * min(height, width)))
    dark = image.max(axis=-1) <= FRAME_LEVEL
    left, top, right, bottom = box
    lines = {
        "left": dark[top:bottom, max(0, left - most - 1) : left][:, ::-1].mean(axis=0),
        "top": dark[max(0, top - most - 1) : top, left:right][::-1].mean(axis=1),
        "right": dark[top:bottom, right : right + most + 1].mean(axis=0),
        "bottom": dark[bottom : bottom + most + 1, left:right].mean(axis=1),
    }
    grown: dict[str, int | None] = {}
    for side, share in lines.items():
        # The first line or two may be a blend of box and frame.
        framed = [index for index, value in enumerate(share) if value >= 0.7]
        ends = bool(framed) and framed[0] <= 2 and framed[-1] < len(share) - 1
        grown[side] = framed[-1] + 1 if ends else 0 if not framed or framed[0] > 2 else None
    # Where all is dark, as on the border of the image, the frame is as wide as on the other sides.
    usual = max((value for value in grown.values() if value is not None), default=0)
    by = {side: usual if value is None else value for side, value in grown.items()}
    return (
        max(0, left - by["left"]),
        max(0, top - by["top"]),
        min(width, right + by["right"]),
        min(height, bottom + by["bottom"]),
    )


def _letters(image: Image, letter: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The colour (3) of the letters in a cut-out, and how much of each pixel (h, w) they cover, in [0, 1]."""
    rise = _rise(image, letter).astype(np.float32)
    peak = max(float(np.quantile(rise, 0.97)), MIN_STROKE + 1.0)
    colour = (
        np.median(image[rise >= 0.8 * peak].reshape(-1, 3), axis=0) if (rise >= 0.8 * peak).any() else np.full(3, 255)
    )
    cover = ((rise - MIN_STROKE) / (0.9 * peak - MIN_STROKE)).clip(0, 1)
    return colour.astype(np.float32), cover


def _filled(image: Image, boxes: Sequence[Box4], hidden: Mask) -> Image:
    """The image with each box filled from what lies beside it; where all of that is hidden too, by inpainting."""
    if not boxes:
        return image
    found, rest = image.copy(), np.zeros(hidden.shape, dtype=np.uint8)
    for box in boxes:
        colours, known = _mirrored(image, box, hidden)
        part = _part(box)
        found[part] = np.where(known[..., None], colours, found[part])
        rest[part] = ~known
    return np.asarray(cv2.inpaint(found, rest, 3, cv2.INPAINT_TELEA), dtype=np.uint8) if rest.any() else found


def _mirrored(image: Image, box: Box4, hidden: Mask) -> tuple[Image, Mask]:
    """What a box shows if its surroundings are mirrored into it from all sides with room, the nearest side most.

    Returns:
        The colours (h, w, 3), and where there are any (h, w).
    """
    height, width = hidden.shape
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    across, down = np.arange(wide), np.arange(high)
    sides = {  # room, distance of each row or column from the edge, its mirror image from there outwards
        "left": (left, across, lambda distance: left - 1 - distance),
        "right": (width - right, across[::-1], lambda distance: right + distance),
        "top": (top, down, lambda distance: top - 1 - distance),
        "bottom": (height - bottom, down[::-1], lambda distance: bottom + distance),
    }
    total = np.zeros((high, wide, 3))
    weights = np.zeros((high, wide, 1))
    for name, (room, distance, place) in sides.items():
        upright = name in ("left", "right")
        if room < (wide if upright else high) / 2:
            continue
        folded = distance % (2 * room)
        source = place(np.where(folded < room, folded, 2 * room - 1 - folded))
        part = np.ix_(np.arange(top, bottom), source) if upright else np.ix_(source, np.arange(left, right))
        near = 1.0 / (distance + 1.0) ** 2
        weight = (near[None, :] if upright else near[:, None]) * ~hidden[part]
        total += image[part] * weight[..., None]
        weights += weight[..., None]
    known = weights[..., 0] > 0
    colours = np.rint(total / np.where(weights > 0, weights, 1)).astype(np.uint8)
    return colours, known


def _free_corner(box: Box4, lesion: Mask | None, width: int, height: int) -> Box4:
    """The box, or its mirror image in the first corner where it hides little of the lesion, else the least."""
    if lesion is None or not lesion.any():
        return box
    left, top, right, bottom = box
    beside, under = (width - right, width - left), (height - bottom, height - top)
    places = [
        box,
        (beside[0], top, beside[1], bottom),
        (left, under[0], right, under[1]),
        (beside[0], under[0], beside[1], under[1]),
    ]
    shares = [float(lesion[_part(place)].sum() / lesion.sum()) for place in places]
    return next((place for place, share in zip(places, shares, strict=True) if share <= MOST_OF_LESION),
                places[int(np.argmin(shares))])  # fmt: skip


def _moved(box: Box4, donor: tuple[int, ...], image: tuple[int, ...]) -> Box4:
    """A box of the donor in pixels of the image (shapes), at least one pixel wide and high."""
    (high, wide), (height, width) = donor[:2], image[:2]
    if (high, wide) == (height, width):
        return box
    left, top = min(round(box[0] * width / wide), width - 1), min(round(box[1] * height / high), height - 1)
    right, bottom = round(box[2] * width / wide), round(box[3] * height / high)
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)


def _grown(box: Box4, by: int, width: int, height: int) -> Box4:
    left, top, right, bottom = box
    return max(0, left - by), max(0, top - by), min(width, right + by), min(height, bottom + by)


def _part(box: Box4) -> _Part:
    left, top, right, bottom = box
    return slice(top, bottom), slice(left, right)


def _resized(cut: NDArray[Any], box: Box4) -> NDArray[Any]:
    """A cut-out in the size of a box."""
    size = (box[2] - box[0], box[3] - box[1])
    return cut if cut.shape[1::-1] == size else np.asarray(cv2.resize(cut, size, interpolation=cv2.INTER_AREA))
