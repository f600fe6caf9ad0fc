"""Detail for a hole: one patch of the readable surroundings, or several with overlap, chosen by what lies around."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.fills.composite import Hole, Window, within
from cogalign.counterfactual.masks import Mask, grow

Map = NDArray[np.float32]

CELLS = 40
"""Patches are looked for on a map on which the region is about so many cells wide."""
DIVISIONS = (1.0, 1.6, 2.4, 3.6, 5.4)
"""Sides of patches tried, as the region's longer side over these; the largest that fits anywhere is used."""
PLACES = 12
"""A patch smaller than the region must fit at so many places, else smaller ones are taken."""
LEAST_CELLS = 5
"""No patch is smaller than this in cells of the map."""
UNKNOWN_SHARE = 0.02
"""Largest share of pixels in a patch that may not be read; they carry no detail."""
FINE = 0.1
"""Of several patches only detail finer than this over their side is kept."""
OVERLAP = 0.3
"""Overlap of neighbouring patches over their side."""
CONTEXT = 0.25
"""Width of the surroundings that a patch is compared with, over its side."""
REUSE = 0.125
"""No patch has its middle in an earlier one, but for this share of that one's side at its edges,
while there are others: what repeats is seen."""
TOLERANCE = 1.1
"""Patches whose error is at most this over the least are equally good (Efros and Freeman)."""
LIGHT = 0.1
"""Weight of the brightness of the coarse part, against the detail, when patches are compared."""


COLOUR = 0.5
"""The same for the colour of the coarse part."""


EVEN = np.full((1, 3), 1 / 3, dtype=np.float32)
"""Mean of the three channels."""


@dataclass(frozen=True)
class _View:
    """The surroundings as they are, or mirrored: `detail` and `coarse` in pixels, the maps in cells."""

    detail: Map
    coarse: Map
    features: Map
    unknown: Map


@dataclass
class _Maps:
    """What patches are taken from, and what is known where they go, which patches were used; `factor` pixels a cell."""

    views: tuple[_View, ...]
    features: Map
    filled: Map
    taken: Mask
    factor: int


def quilt(detail: Map, coarse: Map, hole: Hole, plain: Mask, rng: np.random.Generator) -> tuple[Map, Map] | None:
    """Detail for the window of a hole, after image quilting (Efros and Freeman, SIGGRAPH 2001).

    Patches, as they are or mirrored left to right, are laid from the upper left to the lower right. Each is, up to `TOLERANCE`, the one whose surroundings
    differ least from what is already there: the mucosa around the hole and earlier patches. In overlaps detail is
    mixed such that its variance stays (weights over the root of the sum of their squares).

    Args:
        detail: H x W x 3, 0 where nothing may be read.
        coarse: H x W x 3, the coarse part.
        hole: the region, in the same H x W.
        plain: the pixels, of the same H x W, that may be copied.
        rng: chooses among equally good patches.

    Returns:
        Of the hole's window, h x w x 3 each: the detail and the coarse part of where it came from; None if no patch fits.
    """
    maps = _maps(detail, coarse, hole, plain)
    inner = within(hole.window, hole.around)
    region = hole.region[inner]
    side = max(region.shape)
    for division in DIVISIONS:
        patch = math.ceil(side / division)
        if division > 1.0 and patch < LEAST_CELLS * maps.factor:
            break
        made = _lay(inner, region, maps, patch, rng)
        if made is not None:
            return made
    return None


def _maps(detail: Map, coarse: Map, hole: Hole, plain: Mask) -> _Maps:
    height, width = hole.region.shape
    side = max(hole.window[0].stop - hole.window[0].start, hole.window[1].stop - hole.window[1].start)
    factor = max(1, min(round(side / CELLS), height // 8, width // 8))
    size = (-(-width // factor), -(-height // factor))
    missing = (0, size[1] * factor - height, 0, size[0] * factor - width)

    def padded(plane: Map, border: int) -> Map:
        whole: Map = cv2.copyMakeBorder(plane, *missing, border, value=0) if any(missing) else plane
        return whole

    def shrink(plane: Map) -> Map:
        small: Map = cv2.resize(plane, size, interpolation=cv2.INTER_AREA) if factor > 1 else plane
        return small

    detail, coarse = padded(detail, cv2.BORDER_REPLICATE), padded(coarse, cv2.BORDER_REPLICATE)
    fine, wide = shrink(detail), shrink(coarse)
    colour = fine[..., 0] - fine[..., 2] + COLOUR * (wide[..., 0] - wide[..., 2])
    features = np.dstack((cv2.transform(fine, EVEN), colour, LIGHT * cv2.transform(wide, EVEN)))
    known, usable = (shrink(padded(mask.astype(np.float32), cv2.BORDER_CONSTANT)) for mask in (hole.known, plain))
    mirrored = _View(detail[:, ::-1], coarse[:, ::-1], features[:, ::-1].copy(), 1.0 - usable[:, ::-1])
    return _Maps(
        (_View(detail, coarse, features, 1.0 - usable), mirrored),
        features,
        (known > 0.5).astype(np.float32),
        np.zeros(known.shape, bool),
        factor,
    )


def _lay(inner: Window, region: Mask, maps: _Maps, patch: int, rng: np.random.Generator) -> tuple[Map, Map] | None:
    """Cover the region with patches of this side; None if there are too few places for one of them."""
    copied, origin = (np.zeros((*region.shape, 3), np.float32) for _ in range(2))
    done = np.zeros(region.shape, dtype=bool)
    maps = replace(maps, features=maps.features.copy(), filled=maps.filled.copy(), taken=np.zeros_like(maps.taken))
    for tile in _tiles(region, patch):
        place = _choose(tile, inner, region, maps, patch, rng)
        if place is None:
            return None
        view, rows, columns = place
        top, left = (
            inner[0].start + tile[0].start + rows * maps.factor,
            inner[1].start + tile[1].start + columns * maps.factor,
        )
        source = (slice(top, top + tile[0].stop - tile[0].start), slice(left, left + tile[1].stop - tile[1].start))
        weight = np.where(done[tile], _ramp(tile, patch), np.float32(1))[..., None]
        root = np.sqrt(weight**2 + (1 - weight) ** 2)
        copied[tile] = (copied[tile] * (1 - weight) + view.detail[source] * weight) / root
        origin[tile] = origin[tile] * (1 - weight) + view.coarse[source] * weight
        done[tile] = True
        _note(maps, tile, inner, view, (rows, columns))
    if patch < max(region.shape):
        # What is as wide as a patch makes a pattern where patches meet; the finer part does not.
        copied -= cv2.GaussianBlur(copied, (0, 0), FINE * patch)
    return copied, origin


def _tiles(region: Mask, patch: int) -> Iterator[Window]:
    """Windows of at most `patch` pixels a side that cover the region, with overlap, row by row."""
    for top in _starts(region.shape[0], patch):
        for left in _starts(region.shape[1], patch):
            tile = (slice(top, min(top + patch, region.shape[0])), slice(left, min(left + patch, region.shape[1])))
            if region[tile].any():
                yield tile


def _starts(length: int, patch: int) -> list[int]:
    if length <= patch:
        return [0]
    count = 1 + math.ceil((length - patch) / max(1.0, (1 - OVERLAP) * patch))
    return [round(k * (length - patch) / (count - 1)) for k in range(count)]


def _choose(
    tile: Window, inner: Window, region: Mask, maps: _Maps, patch: int, rng: np.random.Generator
) -> tuple[_View, int, int] | None:
    """Where a tile is copied from: the view, and by how many cells its source lies below and to the right of it."""
    shape, context = maps.filled.shape, max(2, round(CONTEXT * patch / maps.factor))
    rows, columns = _cells(tile, inner, maps.factor)
    outer = grow((rows, columns), context, shape)
    support = np.zeros((outer[0].stop - outer[0].start, outer[1].stop - outer[1].start), dtype=np.float32)
    support[within((rows, columns), outer)] = _shape(
        region[tile], (rows.stop - rows.start, columns.stop - columns.start)
    )
    most = UNKNOWN_SHARE * float(support.sum()) + 0.5
    fits = np.stack([cv2.matchTemplate(view.unknown, support, cv2.TM_CCORR) <= most for view in maps.views])
    if np.count_nonzero(fits) < (1 if region[tile].shape == region.shape else PLACES):
        return None
    fresh = fits & np.stack(
        [_fresh(maps.taken, (rows, columns), outer, fits.shape[1:], view is not maps.views[0]) for view in maps.views]
    )
    fits = fresh if fresh.any() else fits
    weight = maps.filled[outer]
    if weight.any():
        mask, template = np.dstack([weight] * 3), np.ascontiguousarray(maps.features[outer])
        errors = [cv2.matchTemplate(view.features, template, cv2.TM_SQDIFF, mask=mask) for view in maps.views]
    else:
        errors = [np.zeros(fits.shape[1:], dtype=np.float32) for _ in maps.views]
    error = np.where(fits, np.maximum(np.stack(errors), 0), np.inf)
    places = np.argwhere(error <= float(error.min()) * TOLERANCE + 1e-3)
    number, row, column = (int(value) for value in places[rng.integers(len(places))])
    return maps.views[number], row - outer[0].start, column - outer[1].start


def _fresh(taken: Mask, tile: Window, outer: Window, places: tuple[int, ...], mirrored: bool) -> Mask:
    """For each place of the template whether its middle lies outside the middles of the patches used before."""
    middle = [own.start - around.start + (own.stop - own.start) // 2 for own, around in zip(tile, outer, strict=True)]
    seen = taken[:, ::-1] if mirrored else taken
    fresh: Mask = ~seen[middle[0] : middle[0] + places[0], middle[1] : middle[1] + places[1]]
    return fresh


def _cells(tile: Window, inner: Window, factor: int) -> Window:
    """The cells that a tile touches."""
    rows, columns = (
        slice((start.start + side.start) // factor, -(-(start.start + side.stop) // factor))
        for start, side in zip(inner, tile, strict=True)
    )
    return rows, columns


def _shape(part: Mask, cells: tuple[int, int]) -> Map:
    """The share of each cell that belongs to the region."""
    resized: Map = cv2.resize(part.astype(np.float32), cells[::-1], interpolation=cv2.INTER_AREA)
    return resized


def _ramp(tile: Window, patch: int) -> Map:
    """Weight of a patch over what lies below it: 0 at the rim, 1 from the overlap's width on."""
    width = max(1.0, OVERLAP * patch)
    rows, columns = (
        np.clip((np.minimum(at, at[::-1]) + 0.5) / width, 0, 1)
        for at in (np.arange(side.stop - side.start, dtype=np.float32) for side in tile)
    )
    ramp: Map = np.minimum(rows[:, None], columns[None, :])
    return ramp


def _note(maps: _Maps, tile: Window, inner: Window, view: _View, offset: tuple[int, int]) -> None:
    """Write a laid patch into the maps (in place), so that the next ones are compared with it."""
    target = _cells(tile, inner, maps.factor)
    source = tuple(slice(side.start + by, side.stop + by) for side, by in zip(target, offset, strict=True))
    known = maps.filled[target]
    maps.features[target] = np.where(known[..., None] > 0, maps.features[target], view.features[source])
    known[...] = 1.0
    taken = maps.taken if view is maps.views[0] else maps.taken[:, ::-1]
    rows, columns = (
        slice(side.start + round(REUSE * (side.stop - side.start)), side.stop - round(REUSE * (side.stop - side.start)))
        for side in source
    )
    taken[rows, columns] = True
