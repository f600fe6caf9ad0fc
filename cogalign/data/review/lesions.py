"""The lesions of a case one by one, and what a reviewer made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cogalign.cognition.taxonomy import FINDINGS, lookup, nearest
from cogalign.data.case import Box, Case
from cogalign.data.review.rle import Mask, Rle

Corners = tuple[int, int, int, int]
UNNAMED = "lesion"
"""Label of a lesion of which it is not known which of its case's findings it is."""


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Args:
        finding: id of the taxonomy; empty where it is not known which of the case's findings it is.
        box: xmin, ymin, xmax, ymax in pixels, the maxima exclusive.
        region: its pixels; None where only the box is known.
    """

    finding: str
    box: Corners
    region: Rle | None = None


@dataclass(frozen=True)
class Refined:
    """The lesions of a case as they came back from review.

    Args:
        case_id: id in the case set.
        lesions: at least one.
        by: who drew them; empty if the file does not tell.
        confirmed: somebody handed this in on purpose; else a mask that is as before was perhaps never looked at.
    """

    case_id: str
    lesions: tuple[Lesion, ...]
    by: str = ""
    confirmed: bool = False

    def mask(self) -> Mask | None:
        """All regions together, H x W; None if there are only boxes."""
        regions = [lesion.region for lesion in self.lesions if lesion.region is not None]
        if not regions:
            return None
        return np.logical_or.reduce([region.mask() for region in regions])

    @property
    def bare(self) -> list[Lesion]:
        """The lesions of which only the box is known."""
        return [lesion for lesion in self.lesions if lesion.region is None]


def complete_mask(item: Refined, old: Mask | None) -> Mask:
    """The mask of all lesions, H x W: the regions, and in the boxes without region what the old mask has there.

    A mask that leaves a lesion out would make a removal that still shows it, and a report that says normal.

    Args:
        item: at least one of its lesions has a region.
        old: the mask before the review, H x W, or None.

    Raises:
        ValueError: there are only boxes; or the old mask has nothing in such a box but what the regions cover.
    """
    outlined = item.mask()
    if outlined is None:
        raise ValueError(f"case {item.case_id!r}: found boxes only, wanted at least one outline")
    mask = outlined.copy()
    for lesion in item.bare:
        xmin, ymin, xmax, ymax = lesion.box
        place = slice(ymin, ymax), slice(xmin, xmax)
        if old is None or not (old[place] & ~outlined[place]).any():
            raise ValueError(
                f"case {item.case_id!r}: the {lesion.finding or UNNAMED} in box {xmin}, {ymin} to {xmax}, {ymax} has no "
                "outline, but another lesion of the case has: outline it or delete it"
            )
        mask[place] |= old[place]
    return mask


def lesions_of(case: Case, mask: Mask | None) -> list[Lesion]:
    """The lesions of a case: together they are exactly its mask.

    Connected parts of the mask that one box covers are one lesion; a part that several boxes touch is shared out
    among them. A box without a pixel of the mask is a lesion without region.

    Args:
        case: for its boxes and findings.
        mask: H x W, or None.
    """
    owners = _owners(case.boxes, mask) if mask is not None else None
    lesions = []
    for number, box in enumerate(case.boxes, start=1):
        part = owners == number if owners is not None else None
        if part is not None and part.any():
            lesions.append(Lesion(box.finding, bounds(part), Rle.from_mask(part)))
        else:
            lesions.append(Lesion(box.finding, (box.xmin, box.ymin, box.xmax, box.ymax)))
    if owners is not None:
        finding = case.findings[0] if len(case.findings) == 1 and not case.is_normal else ""
        for number in range(len(case.boxes) + 1, int(owners.max(initial=0)) + 1):
            part = owners == number
            if part.any():
                lesions.append(Lesion(finding, bounds(part), Rle.from_mask(part)))
    return lesions


def _owners(boxes: Sequence[Box], mask: Mask) -> np.ndarray:
    """For each pixel of the mask the number of its box from 1, or a further number for each part without a box."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    owners = np.zeros(mask.shape, dtype=np.int32)
    for part in range(1, count):
        ys, xs = np.nonzero(parts == part)
        touching = [k for k, box in enumerate(boxes) if _covers(box, xs, ys).any()]
        if not touching:
            owners[ys, xs] = len(boxes) + part
            continue
        # Distance from a box's middle in units of its sides: at most 1/2 inside.
        distances = [_distance(boxes[k], xs, ys) for k in touching]
        owners[ys, xs] = 1 + np.array(touching)[np.argmin(distances, axis=0)]
    return owners


def _covers(box: Box, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Which of the pixels lie in the box."""
    return (xs >= box.xmin) & (xs < box.xmax) & (ys >= box.ymin) & (ys < box.ymax)


def _distance(box: Box, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Distance of pixels from the middle of a box, in units of its sides (the larger of both directions)."""
    across = np.abs(xs + 0.5 - (box.xmin + box.xmax) / 2) / max(box.xmax - box.xmin, 1)
    down = np.abs(ys + 0.5 - (box.ymin + box.ymax) / 2) / max(box.ymax - box.ymin, 1)
    return np.maximum(across, down)


def without_refined(lesions: Sequence[Lesion]) -> list[Lesion]:
    """The lesions without the boxes that became regions of the same finding.

    A region takes the place of the box that fits it best, and of those that it covers by half. A box that it barely
    touches is another lesion's and stays.
    """
    bare = [lesion for lesion in lesions if lesion.region is None]
    replaced: list[Lesion] = []
    for region in lesions:
        if region.region is None:
            continue
        near = [
            box
            for box in bare
            if box.finding == region.finding
            and 2 * _shared(box.box, region.box) >= min(_area(box.box), _area(region.box))
        ]
        best = max(near, key=lambda box: _fit(box.box, region.box), default=None)
        replaced += [box for box in near if box is best or 2 * _shared(box.box, region.box) >= _area(box.box)]
    return [lesion for lesion in lesions if lesion.region is not None or lesion not in replaced]


def _area(box: Corners) -> int:
    """Pixels of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(one: Corners, other: Corners) -> int:
    """Pixels that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _fit(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes."""
    shared = _shared(one, other)
    return shared / (_area(one) + _area(other) - shared)


def bounds(mask: Mask) -> Corners:
    """xmin, ymin, xmax, ymax of a mask that is not empty, the maxima exclusive."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def finding_of(label: str, case: Case) -> str:
    """The finding that a label of a review file means, which must be one of the case's.

    Raises:
        ValueError: the taxonomy has no such label, or the case has no such finding: its report would be wrong.
    """
    if label == UNNAMED:
        return case.findings[0] if len(case.findings) == 1 and not case.is_normal else ""
    found = FINDINGS.get(label) or lookup(label)
    if found is None:
        raise ValueError(f"label: found {label!r}, which is not in the taxonomy; nearest: {nearest(label)!r}")
    if found.id not in case.findings or case.is_normal:
        raise ValueError(
            f"label: found {label!r}, wanted one of the case's findings: {', '.join(case.findings)}; "
            "change its findings and report in the case set first"
        )
    return found.id
