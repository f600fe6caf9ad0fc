"""The lesions of a case one by one, and what a reviewer made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cogalign.cognition.taxonomy import FINDINGS, lookup, nearest
from cogalign.data.case import Box, Case
from cogalign.data.review.rle import Mask, Rle

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
    box: tuple[int, int, int, int]
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
        # Distance from a box' middle in units of its sides: at most 1/2 inside.
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
    """The lesions without boxes that a region of the same finding overlaps: the region is what became of the box."""
    regions = [lesion for lesion in lesions if lesion.region is not None]
    return [
        lesion
        for lesion in lesions
        if lesion.region is not None
        or not any(region.finding == lesion.finding and _overlap(region.box, lesion.box) for region in regions)
    ]


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether two boxes share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def bounds(mask: Mask) -> tuple[int, int, int, int]:
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
