"""Photographs that occur more than once: the same pixels, or another size, quality or brightness of them.

Every image is compared with every other, so nothing is missed by an index. Thumbnails are compared in whole grey
levels, as `fingerprints.npz` keeps them, so that stored and fresh fingerprints give the same answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cogalign.data.alignment import Fields, fields_of, same_photograph
from cogalign.data.images import Fingerprint

MAX_BITS = 6
"""Photographs are compared when their 64 bits differ in at most so many places."""
MAX_DIFFERENCE = 6.0
"""Compared photographs are one when their thumbnails differ by at most so many of 255 grey levels on average."""
MOST = 50
"""An image with more neighbours behind it than this lists so many of them."""
_BLOCK = 2048

Ints = NDArray[np.int64]
Pair = tuple[int, int, int, float]
"""Indices of two images (the smaller first), bits in which they differ, mean difference of their thumbnails."""


@dataclass(frozen=True)
class _Table:
    """Fingerprints as arrays, one row for each image."""

    bits: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    """(n, 1024) whole grey levels."""
    coarse: NDArray[np.float32]
    """(n, 16) means of 8 x 8 pixels of the thumbnail: their mean difference is never above that of the thumbnails."""


def near_duplicates(prints: Sequence[Fingerprint]) -> list[int]:
    """For each image the index of the first image that shows the same photograph (its own, if there is none).

    Two images are one photograph when their pixels are equal, or when both the perceptual hash (`MAX_BITS`) and the
    grey thumbnail (`MAX_DIFFERENCE`) agree, or when one is a crop of the other or shows it in a black frame
    (`alignment`). Chains count: a = b and b = c puts a, b, c together.

    A breadth-first search over the images that belong to no photograph so far: each pair is looked at once at most,
    and thousands of nearly equal images (black frames) fall together in one step.
    """
    table = _table(prints)
    firsts, shown = _collapsed([print_.digest for print_ in prints], table)
    owner = firsts.copy()
    rest = firsts
    fields = fields_of(table.thumbnails)
    rest_bits = np.stack((table.bits[rest], fields.bits[rest]))
    while rest.size:
        start = int(rest[0])
        rest, rest_bits = rest[1:], rest_bits[:, 1:]
        waiting = [start]
        while waiting and rest.size:
            image = waiting.pop()
            for search in (_as_they_are, _as_fields):
                alike = search(table, fields, image, rest, rest_bits)
                if alike.size:
                    waiting.extend(rest[alike].tolist())
                    owner[np.searchsorted(firsts, rest[alike])] = start
                    rest, rest_bits = np.delete(rest, alike), np.delete(rest_bits, alike, axis=1)
    return [int(owner[place]) for place in shown]


def _as_they_are(table: _Table, fields: Fields, image: int, rest: Ints, bits: NDArray[np.uint64]) -> Ints:
    """Places in `rest` of the images whose hash and thumbnail agree with an image's; `bits` (2, n) are their hashes."""
    places = np.flatnonzero(np.bitwise_count(bits[0] ^ table.bits[image]) <= MAX_BITS)
    if places.size == 0:
        return places
    return places[_differences(table, image, rest[places], MAX_DIFFERENCE) <= MAX_DIFFERENCE]


def _as_fields(table: _Table, fields: Fields, image: int, rest: Ints, bits: NDArray[np.uint64]) -> Ints:
    """Places in `rest` of the images whose visible field is the same, or a part of it."""
    return np.array(same_photograph(fields, image, rest, bits[1]), dtype=np.int64)


def neighbours(
    prints: Sequence[Fingerprint],
    max_bits: int,
    max_difference: float,
    *,
    apart: Sequence[Hashable] | None = None,
    most: int = MOST,
) -> list[Pair]:
    """Pairs of images that resemble each other, in the order of their first and second image.

    Every image is compared with all behind it, one row at a time, so memory grows with the pairs found alone: at most
    `most` for an image. Copies with the same pixels would give a pair with each other: instead each copy has one pair with the
    first of them, and one with a neighbour of the first.

    Args:
        prints: one for each image.
        max_bits: bits in which the hashes may differ, of 64.
        max_difference: mean difference that the thumbnails may have, in grey levels.
        apart: a label for each image, such as its split: only pairs with two labels are told.
        most: an image with more partners behind it than this lists so many of them, nearly the nearest.
    """
    table = _table(prints)
    labels = np.zeros(len(prints), dtype=np.int64) if apart is None else _codes(apart)
    keys = list(zip((print_.digest for print_ in prints), labels.tolist(), strict=True))
    firsts, shown = _collapsed(keys, None)
    pairs: list[Pair] = []
    for place, image in enumerate(firsts.tolist()):
        later = firsts[place + 1 :]
        if apart is not None:
            later = later[labels[later] != labels[image]]
        pairs.extend(_partners(table, image, later, max_bits, max_difference, most))
    nearest = {index: pair for pair in reversed(pairs) for index in pair[:2]}
    for index, place in enumerate(shown.tolist()):
        first = int(firsts[place])
        if index != first:
            if apart is None:
                pairs.append((first, index, 0, 0.0))
            if first in nearest:
                one, two, bits, difference = nearest[first]
                other = two if one == first else one
                pairs.append((min(other, index), max(other, index), bits, difference))
    return sorted(set(pairs))


def _partners(
    table: _Table, image: int, others: Ints, max_bits: int, max_difference: float, most: int
) -> Iterator[Pair]:
    """At most `most` of the others that resemble an image, those first whose coarse thumbnails are nearest."""
    bits = np.bitwise_count(table.bits[others] ^ table.bits[image])
    near = np.flatnonzero(bits <= max_bits)
    if near.size == 0:
        return
    others, bits = others[near], bits[near]
    if near.size > most:
        order = np.argsort(np.abs(table.coarse[others] - table.coarse[image]).mean(axis=1), kind="stable")
        others, bits = others[order], bits[order]
    told = 0
    step = max(4 * most, 64)
    for start in range(0, others.size, step):
        part = others[start : start + step]
        differences = _differences(table, image, part, max_difference)
        for place in np.flatnonzero(differences <= max_difference)[: most - told].tolist():
            yield image, int(part[place]), int(bits[start + place]), round(float(differences[place]), 3)
            told += 1
        if told == most:
            return


def _differences(table: _Table, image: int, others: Ints, limit: float) -> NDArray[np.float64]:
    """Mean difference of an image's thumbnail to those of others; infinite where the coarse ones tell it is above `limit`."""
    found = np.full(others.size, np.inf)
    lower = np.abs(table.coarse[others] - table.coarse[image]).mean(axis=1)
    places = np.flatnonzero(lower <= limit + 1e-3)
    one = table.thumbnails[image].astype(np.int16)
    for start in range(0, places.size, _BLOCK):
        part = places[start : start + _BLOCK]
        found[part] = np.abs(table.thumbnails[others[part]] - one).mean(axis=1)
    return found


def _table(prints: Sequence[Fingerprint]) -> _Table:
    """The arrays of fingerprints."""
    thumbnails = np.zeros((len(prints), 32, 32), dtype=np.uint8)
    for index, print_ in enumerate(prints):
        thumbnails[index] = np.clip(np.rint(print_.thumbnail), 0, 255)
    coarse = np.zeros((len(prints), 16), dtype=np.float32)
    for start in range(0, len(prints), _BLOCK):
        block = thumbnails[start : start + _BLOCK].reshape(-1, 4, 8, 4, 8)
        coarse[start : start + _BLOCK] = block.mean(axis=(2, 4), dtype=np.float32).reshape(-1, 16)
    bits = np.array([print_.bits for print_ in prints], dtype=np.uint64)
    return _Table(bits, thumbnails.reshape(len(prints), 1024), coarse)


def _collapsed(keys: Sequence[Hashable], table: _Table | None) -> tuple[Ints, Ints]:
    """Images with the same key, or (with a table) the same bits and thumbnail, as one.

    Returns:
        The first image of each kind, in order; and for each image the place of its kind among them.
    """
    places: dict[Hashable, int] = {}
    firsts: list[int] = []
    shown = np.zeros(len(keys), dtype=np.int64)
    for index, key in enumerate(keys):
        look = (int(table.bits[index]), table.thumbnails[index].tobytes()) if table is not None else None
        place = places.get(key, places.get(look) if look is not None else None)
        if place is None:
            place = len(firsts)
            firsts.append(index)
        places.setdefault(key, place)
        if look is not None:
            places.setdefault(look, place)
        shown[index] = place
    return np.array(firsts, dtype=np.int64), shown


def _codes(labels: Sequence[Hashable]) -> Ints:
    """A number for each label."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
