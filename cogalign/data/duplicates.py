"""Photographs that occur more than once: the same pixels, or another size, quality, brightness or crop of them.

Every image is compared with every other, so nothing is missed by an index. Thumbnails are compared in whole grey
levels, as `fingerprints.npz` keeps them, so that stored and fresh fingerprints give the same answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cogalign.data.alignment import MIN_CONTRAST, Detail, detail_of, same_photograph, visible_fields
from cogalign.data.images import Fingerprint

MAX_BITS = 6
"""Photographs are compared when their 64 bits differ in at most so many places."""
MAX_DIFFERENCE = 6.0
"""Compared photographs are one when their thumbnails differ by at most so many of 255 grey levels on average ..."""
MIN_DETAIL = 0.9
"""... and their detail (`alignment.Detail`) correlates at least so well."""
MIN_SPREAD = 2.0
"""An image whose detail has a smaller standard deviation, in grey levels, tells nothing: black, white, out of focus."""
MOST_ALIGNED = 30_000
"""At most so many pairs are laid on one another in one search, those first whose detail correlates best."""
MOST = 50
"""An image with more neighbours behind it than this lists so many of them."""
_DETAIL_BITS = 16
_MIN_CORRELATION = 0.5  # of the detail of two fields before one is laid on the other
_NEAREST = 256
_MEMBERS = 32
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


def informative(print_: Fingerprint) -> bool:
    """Whether an image shows enough to be recognised: False for black, white, plain and wholly blurred frames.

    Of such frames even equal pixels do not say that they are of one patient or video.
    """
    return informative_ones([print_])[0]


def informative_ones(prints: Sequence[Fingerprint]) -> list[bool]:
    """`informative` of many images at once, which is many times faster."""
    found: list[bool] = []
    for start in range(0, len(prints), _BLOCK):
        block = np.stack([_whole_levels(print_.thumbnail).ravel() for print_ in prints[start : start + _BLOCK]])
        found.extend((detail_of(visible_fields(block)).spread >= MIN_SPREAD).tolist())
    return found


def near_duplicates(prints: Sequence[Fingerprint]) -> list[int]:
    """For each image the index of the first image that shows the same photograph (its own, if there is none).

    Two images are one photograph when their pixels are equal. Two images that are `informative` are one as well when

    - perceptual hash (`MAX_BITS`), grey thumbnail (`MAX_DIFFERENCE`) and detail (`MIN_DETAIL`) agree, or
    - one is a crop of the other or shows it in a black frame (`alignment.same_photograph`).

    Chains count: a = b and b = c puts a, b, c together. The order of the images makes no difference to which of them
    fall together: everything is done in the order of their digests.

    What the second rule misses: fields are laid on one another only if the hashes of their detail differ in at most 16
    bits and their detail correlates by 0.5 as it lies, so crops of more than about 5 % on each side are lost, and images
    of little contrast (`alignment.MIN_CONTRAST`) always; in case sets of tens of thousands of similar frames only the best `MOST_ALIGNED` pairs are tried; of more than 256 similar
    hashes for an image, the nearest 256; and of more than 32 images that the first rule put together, 32 of them.
    """
    digests = [print_.digest for print_ in prints]
    order = sorted(range(len(prints)), key=lambda index: (digests[index], prints[index].bits))
    kinds: dict[str, int] = {}
    kind_of = np.zeros(len(prints), dtype=np.int64)
    for index in order:
        kind_of[index] = kinds.setdefault(digests[index], len(kinds))
    chosen = np.unique(kind_of[order], return_index=True)[1]
    table = _table([prints[order[place]] for place in chosen.tolist()])
    roots = _photographs(table)[kind_of]
    firsts: dict[int, int] = {}
    return [firsts.setdefault(root, index) for index, root in enumerate(roots.tolist())]


def _photographs(table: _Table) -> Ints:
    """A number for each image, equal for images of one photograph; the images have different pixels."""
    fields = visible_fields(table.thumbnails)
    detail = detail_of(fields)
    roots = np.arange(len(table.bits), dtype=np.int64)
    telling = np.flatnonzero(detail.spread >= MIN_SPREAD)
    _join_as_they_are(table, telling, roots)
    members = _some_of_each(telling[detail.spread[telling] >= MIN_CONTRAST], roots)
    pairs = _candidates(detail, members, roots)
    parents = {int(root): int(root) for root in np.unique(roots)}

    def find(root: int) -> int:
        while parents[root] != root:
            parents[root] = parents[parents[root]]
            root = parents[root]
        return root

    tried = 0
    for one, other in pairs.tolist():
        first, second = find(int(roots[one])), find(int(roots[other]))
        if first == second:
            continue
        if tried == MOST_ALIGNED:
            break
        tried += 1
        if same_photograph(fields[one], fields[other]):
            parents[max(first, second)] = min(first, second)
    return np.array([find(root) for root in roots.tolist()], dtype=np.int64)


def _join_as_they_are(table: _Table, images: Ints, roots: Ints) -> None:
    """Give the images whose hash, thumbnail and detail agree the same number in `roots`.

    A breadth-first search over the images that belong to no photograph so far: each pair is looked at once at most,
    and thousands of nearly equal images fall together in one step.
    """
    detail = detail_of(table.thumbnails)
    rest = images
    bits = np.stack((table.bits[rest], detail.bits[rest]))
    while rest.size:
        start = int(rest[0])
        rest, bits = rest[1:], bits[:, 1:]
        waiting = [start]
        while waiting and rest.size:
            image = waiting.pop()
            near = np.flatnonzero(np.bitwise_count(bits[0] ^ table.bits[image]) <= MAX_BITS)
            near = near[np.bitwise_count(bits[1, near] ^ detail.bits[image]) <= _DETAIL_BITS]
            if near.size:
                near = near[detail.unit[rest[near]] @ detail.unit[image] >= MIN_DETAIL]
            if near.size:
                near = near[_differences(table, image, rest[near], MAX_DIFFERENCE) <= MAX_DIFFERENCE]
            if near.size:
                waiting.extend(rest[near].tolist())
                roots[rest[near]] = start
                rest, bits = np.delete(rest, near), np.delete(bits, near, axis=1)


def _some_of_each(images: Ints, roots: Ints) -> Ints:
    """At most `_MEMBERS` images of each photograph. The images are in the order of digests, so these are drawn at random."""
    counts: dict[int, int] = {}
    kept = []
    for image, root in zip(images.tolist(), roots[images].tolist(), strict=True):
        counts[root] = counts.get(root, 0) + 1
        if counts[root] <= _MEMBERS:
            kept.append(image)
    return np.array(kept, dtype=np.int64)


def _candidates(detail: Detail, images: Ints, roots: Ints) -> Ints:
    """Pairs (m, 2) of images of two photographs whose fields may be one, those first whose detail correlates best."""
    bits, unit, own = detail.bits[images], detail.unit[images], roots[images]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    scores = [np.zeros(0, dtype=np.float32)]
    for place in range(len(images) - 1):
        distance = np.bitwise_count(bits[place + 1 :] ^ bits[place])
        near = np.flatnonzero(distance <= _DETAIL_BITS)
        if near.size > _NEAREST:
            near = near[np.argsort(distance[near], kind="stable")[:_NEAREST]]
        near = near[own[place + 1 + near] != own[place]] + place + 1
        if near.size == 0:
            continue
        correlation = unit[near] @ unit[place]
        good = correlation >= _MIN_CORRELATION
        if good.any():
            pairs.append(np.stack((np.full(int(good.sum()), images[place]), images[near[good]]), axis=1))
            scores.append(correlation[good])
    score = np.concatenate(scores)
    return np.concatenate(pairs)[np.argsort(-score, kind="stable")]


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
    firsts, shown = _collapsed(keys)
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
        thumbnails[index] = _whole_levels(print_.thumbnail)
    coarse = np.zeros((len(prints), 16), dtype=np.float32)
    for start in range(0, len(prints), _BLOCK):
        block = thumbnails[start : start + _BLOCK].reshape(-1, 4, 8, 4, 8)
        coarse[start : start + _BLOCK] = block.mean(axis=(2, 4), dtype=np.float32).reshape(-1, 16)
    bits = np.array([print_.bits for print_ in prints], dtype=np.uint64)
    return _Table(bits, thumbnails.reshape(len(prints), 1024), coarse)


def _collapsed(keys: Sequence[Hashable]) -> tuple[Ints, Ints]:
    """Images with the same key as one.

    Returns:
        The first image of each kind, in order; and for each image the place of its kind among them.
    """
    places: dict[Hashable, int] = {}
    shown = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
    return np.unique(shown, return_index=True)[1].astype(np.int64), shown


def _codes(labels: Sequence[Hashable]) -> Ints:
    """A number for each label."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def _whole_levels(thumbnail: NDArray[np.generic]) -> NDArray[np.uint8]:
    """A thumbnail in whole grey levels."""
    return np.clip(np.rint(thumbnail), 0, 255).astype(np.uint8)
