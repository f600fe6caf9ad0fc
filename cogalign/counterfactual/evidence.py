"""A lesion's mask from the most trusted evidence that a case has: expert, box, segmenter, proposed box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cogalign.cognition.taxonomy import FINDINGS, lookup
from cogalign.counterfactual.grabcut import Window, cut_out, shape_plausibility
from cogalign.counterfactual.masks import Image, Mask, area_problem, clean, cut_box
from cogalign.data.case import Box, Case
from cogalign.recipe import MaskSettings

Probability = NDArray[np.float32]
ConfidenceOf = Callable[[Probability, Mask], float]

PROVENANCES = ("expert", "box+segmenter", "box+grabcut", "segmenter", "grounding+segmenter", "grounding+grabcut")
"""Where a mask comes from, the most trusted first."""
THRESHOLD = 0.5
"""The segmenter sees lesion where its probability is at least this."""
GROWTH = 0.06
"""A box is grown by this share of its sides before it cuts the segmenter's map: boxes are drawn by hand."""
COVERED = (0.3, 0.97)
"""A lesion covers at least and at most this share of its box (Kvasir-SEG: 0.37 to 0.81 in 98 of 100)."""
WIDEST_BOX = 0.9
"""A box with more of the image than this says nothing of where the lesion is."""
PROPOSED = 0.75
"""Confidence of a mask in a proposed box over that in a box of an expert. Our choice: it was not measured."""

NO_EVIDENCE = "no evidence of where the lesion is"
OUTSIDE = "box outside the image"
TOO_WIDE = "box nearly as large as the image"
WITHOUT_BOX = "a finding without a box"
NOTHING_IN_BOX = "no lesion found in a box"
NOTHING_SEEN = "the segmenter sees no lesion"
NOTHING_PROPOSED = "no box proposed"
UNSURE = "confidence below min_confidence"


@dataclass
class FoundMask:
    """A mask (H x W) with its provenance (one of `PROVENANCES`) and its confidence in [0, 1]."""

    mask: Mask
    provenance: str
    confidence: float


@dataclass
class Untrusted:
    """Why a case has no mask that can be trusted; a text without numbers, so that equal reasons can be counted."""

    reason: str


def find_mask(
    image: Image,
    case: Case,
    expert: Mask | None,
    settings: MaskSettings,
    min_area: float,
    max_area: float,
    probability: Probability | None = None,
    confidence_of: ConfidenceOf | None = None,
    grounded: Sequence[Box] = (),
) -> FoundMask | Untrusted:
    """The mask of all lesions of a case, or why there is none.

    The most trusted evidence which the settings allow and the case has decides; a weaker one never overrules it. Only
    where the segmenter alone does not find a mask that holds, proposed boxes are asked.

    Args:
        image: H x W x 3 uint8, RGB.
        case: its boxes and findings.
        expert: H x W, or None.
        settings: evidence, `min_confidence`, `min_component`.
        min_area: smallest mask over the image's area.
        max_area: largest mask over the image's area.
        probability: H x W float32 in [0, 1], calibrated, of the segmenter; None without one.
        confidence_of: confidence in a mask of the segmenter; None: the Dice that its probabilities promise.
        grounded: boxes that a model proposed, in pixels.

    Raises:
        ValueError: mask or probabilities are not as large as the image.
    """
    for name, value in (("mask", expert), ("segmenter's map", probability)):
        if value is not None and value.shape != image.shape[:2]:
            raise ValueError(
                f"case {case.id!r}: found a {name} of {value.shape[1]} x {value.shape[0]} pixels, "
                f"wanted {image.shape[1]} x {image.shape[0]} as the image"
            )
    sure = confidence_of or promised_dice
    allowed = settings.evidence
    limits = _Limits(settings.min_confidence, settings.min_component, min_area, max_area)
    if expert is not None and "expert" in allowed:
        problem = area_problem(expert, min_area, max_area)
        return FoundMask(expert, "expert", 1.0) if problem is None else Untrusted(problem)
    if case.boxes and "box" in allowed:
        if not boxes_cover_findings(case):
            return Untrusted(WITHOUT_BOX)
        return _in_boxes(image, case.boxes, "box", limits, probability, sure)
    result = Untrusted(NO_EVIDENCE)
    if probability is not None and "segmenter" in allowed:
        alone = _alone(probability, limits, sure)
        if isinstance(alone, FoundMask):
            return alone
        result = alone
    if "grounding" in allowed:
        inside = [box for box in grounded if cut_box(box, image.shape) is not None]
        if inside:
            return _in_boxes(image, inside, "grounding", limits, probability, sure)
        result = result if result.reason != NO_EVIDENCE else Untrusted(NOTHING_PROPOSED)
    return result


def promised_dice(probability: Probability, mask: Mask) -> float:
    """The Dice that calibrated probabilities promise for a mask: 2 sum_mask p / (|mask| + sum p).

    Both maps are H x W; the ratio of expectations stands for the expectation of the ratio. 0 where both are empty.
    """
    total = float(np.count_nonzero(mask)) + float(probability.sum(dtype=np.float64))
    return 2.0 * float(probability[mask].sum(dtype=np.float64)) / total if total > 0 else 0.0


def boxes_cover_findings(case: Case) -> bool:
    """Whether each focal finding of the case has a box: otherwise its lesion would not be in the mask."""

    def plain(name: str) -> str:
        found = lookup(name)
        return found.id if found is not None else name

    boxed = {plain(box.finding) for box in case.boxes}
    focal = {plain(name) for name in case.findings if name not in FINDINGS or FINDINGS[name].focal}
    return focal - {"normal"} <= boxed


@dataclass(frozen=True)
class _Limits:
    """What a mask must keep to."""

    confidence: float
    component: float
    min_area: float
    max_area: float

    def check(self, found: FoundMask) -> FoundMask | Untrusted:
        """The mask, or why it is not trusted."""
        problem = area_problem(found.mask, self.min_area, self.max_area)
        if problem is None and found.confidence < self.confidence:
            problem = UNSURE
        return found if problem is None else Untrusted(problem)


def _alone(probability: Probability, limits: _Limits, sure: ConfidenceOf) -> FoundMask | Untrusted:
    """The mask that the segmenter sees in the whole image."""
    mask = clean(probability >= THRESHOLD, limits.component)
    if not mask.any():
        return Untrusted(NOTHING_SEEN)
    return limits.check(FoundMask(mask, "segmenter", sure(probability, mask)))


def _in_boxes(
    image: Image,
    boxes: Sequence[Box],
    kind: str,
    limits: _Limits,
    probability: Probability | None,
    sure: ConfidenceOf,
) -> FoundMask | Untrusted:
    """The union of one mask for each box. One that fails fails the case: its lesion would stay where it is."""
    whole = np.zeros(image.shape[:2], dtype=bool)
    used, confidence = [], 1.0
    for box in boxes:
        window = cut_box(box, image.shape)
        if window is None:
            return Untrusted(OUTSIDE)
        if (window[2] - window[0]) * (window[3] - window[1]) > WIDEST_BOX * whole.size:
            return Untrusted(TOO_WIDE)
        found = _by_segmenter(window, probability, limits, sure) if probability is not None else None
        how = "segmenter"
        if found is None or found[1] < limits.confidence:
            outlined = _by_grabcut(image, window, limits)
            if outlined is not None and (found is None or outlined[1] > found[1]):
                found, how = outlined, "grabcut"
        if found is None:
            return Untrusted(NOTHING_IN_BOX)
        whole |= found[0]
        used.append(f"{kind}+{how}")
        confidence = min(confidence, found[1])
    if kind == "grounding":
        confidence *= PROPOSED
    return limits.check(FoundMask(whole, max(used, key=PROVENANCES.index), confidence))


def _by_segmenter(
    window: Window, probability: Probability, limits: _Limits, sure: ConfidenceOf
) -> tuple[Mask, float] | None:
    """The segmenter's lesion inside a box and its confidence; None if it covers no sensible share of the box."""
    inside = np.zeros_like(probability)
    place = _grown(window, probability.shape)
    inside[place] = probability[place]
    mask = _cleaned(inside >= THRESHOLD, window, limits)
    if not _sensible(mask, window):
        return None
    return mask, sure(inside, mask)


def _by_grabcut(image: Image, window: Window, limits: _Limits) -> tuple[Mask, float] | None:
    """GrabCut's lesion inside a box and its confidence: stability of the outline times plausibility of its shape."""
    outline = cut_out(image, window)
    if outline is None:
        return None
    mask = _cleaned(outline.mask, window, limits)
    if not _sensible(mask, window):
        return None
    return mask, outline.stability * shape_plausibility(mask, window)


def _cleaned(mask: Mask, window: Window, limits: _Limits) -> Mask:
    """The mask of a box cleaned up; a box smaller than the smallest part keeps its own lesion."""
    area = (window[2] - window[0]) * (window[3] - window[1])
    return clean(mask, min(limits.component, COVERED[0] * area / mask.size))


def _sensible(mask: Mask, window: Window) -> bool:
    """Whether the mask covers a share of its box that a lesion can have."""
    covered = float(mask[window[1] : window[3], window[0] : window[2]].mean())
    return COVERED[0] <= covered <= COVERED[1]


def _grown(window: Window, shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a box grown by `GROWTH` of its sides, at least a pixel, inside the image."""
    wide = max(1, math.ceil(GROWTH * (window[2] - window[0])))
    high = max(1, math.ceil(GROWTH * (window[3] - window[1])))
    return (
        slice(max(0, window[1] - high), min(shape[0], window[3] + high)),
        slice(max(0, window[0] - wide), min(shape[1], window[2] + wide)),
    )
