"""The outline of a lesion inside its box by GrabCut, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cogalign.counterfactual.masks import Image, Mask, fill_holes

SIDE = 160
"""Longest side, in pixels, of the reduced cut-out on which GrabCut runs."""
AROUND = 0.3
"""Width of the background around the box that is looked at, over the box's sides."""
RUNS = ((0.7, 0.0), (0.55, 0.1), (0.4, 0.0))
"""Each run: its sure lesion (sides of an ellipse over those of the box) and its margin (growth of the box, likewise).
The first one gives the outline; how far the others agree says how stable it is."""
ROUNDS = 2
"""Iterations of GrabCut; more of them drift from the lesion on mucosa of its colour."""
SEED = 0
"""OpenCV's generator starts the colour clusters; a fixed seed makes the outline repeatable."""
MOST_OF_WINDOW = 0.95
"""A box that takes more of the cut-out than this leaves no background to compare with."""
USUAL_FILL = 0.70
"""Share of its box that a lesion usually covers: the median of Kvasir-SEG's masks (an ellipse has 0.785)."""
FILL_SPREAD = 0.15
"""Fall of the plausibility as that share differs: the standard deviation of a Gaussian."""

Window = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax in pixels; the last two are exclusive."""


@dataclass(frozen=True)
class Outline:
    """A lesion that was found in a box.

    Attributes:
        mask: H x W of the image; False outside the box.
        stability: geometric mean of the IoU of the outline with those of the other runs, in [0, 1].
    """

    mask: Mask
    stability: float


def cut_out(image: Image, box: Window) -> Outline | None:
    """The lesion in a box, or None where the box leaves no background to compare with.

    GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004): colour models of lesion and background, and short borders
    between them, in turns. Sure background is what lies outside the box, sure lesion its middle; in between the ellipse
    in the box is the first guess for the lesion.

    Args:
        image: H x W x 3 uint8, RGB.
        box: inside the image.
    """
    left, top, right, bottom = around = _surroundings(box, image.shape)
    if (box[2] - box[0]) * (box[3] - box[1]) > MOST_OF_WINDOW * (right - left) * (bottom - top):
        return None
    scale = min(1.0, SIDE / max(right - left, bottom - top))
    size = (max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale)))
    small = cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
    x_scale, y_scale = size[0] / (right - left), size[1] / (bottom - top)
    place = (
        round((box[0] - left) * x_scale),
        round((box[1] - top) * y_scale),
        round((box[2] - left) * x_scale),
        round((box[3] - top) * y_scale),
    )
    found = [_run(small, place, core, margin) for core, margin in RUNS]
    inside = _rectangle(found[0].shape, place)
    first, *others = (mask & inside for mask in found)
    stability = math.prod(overlap(first, other) for other in others) ** (1 / len(others))
    whole = np.zeros(image.shape[:2], dtype=bool)
    grown = cv2.resize(first.astype(np.float32), (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    whole[around[1] : around[3], around[0] : around[2]] = grown > 0.5
    return Outline(whole & _rectangle(whole.shape, box), stability)


def shape_plausibility(mask: Mask, box: Window) -> float:
    """How well a mask fits the box that was drawn around its lesion, in [0, 1].

    The share of the box that the mask's own box takes (1: it reaches all four sides) times
    exp(-((f - 0.70) / 0.15)^2 / 2), where f is the share of the box that the mask covers.

    Args:
        mask: H x W.
        box: the lesion's box; mask pixels outside it do not count.
    """
    part = mask[box[1] : box[3], box[0] : box[2]]
    if not part.any():
        return 0.0
    _, _, width, height = cv2.boundingRect(part.astype(np.uint8))
    fit = width * height / part.size
    fill = float(np.count_nonzero(part)) / part.size
    return float(fit * math.exp(-0.5 * ((fill - USUAL_FILL) / FILL_SPREAD) ** 2))


def overlap(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks of one shape; 0 where both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 0.0


def _surroundings(box: Window, shape: Sequence[int]) -> Window:
    """The box with `AROUND` of its sides on each side, cut at the image's borders."""
    wide, high = math.ceil(AROUND * (box[2] - box[0])), math.ceil(AROUND * (box[3] - box[1]))
    return max(0, box[0] - wide), max(0, box[1] - high), min(shape[1], box[2] + wide), min(shape[0], box[3] + high)


def _rectangle(shape: Sequence[int], box: Window) -> Mask:
    """True inside the box."""
    inside = np.zeros(shape[:2], dtype=bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return inside


def _ellipse(shape: Sequence[int], box: Window, share: float) -> Mask:
    """True inside the ellipse with the box's centre and `share` of its sides."""
    drawn = np.zeros(shape[:2], dtype=np.uint8)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    cv2.ellipse(drawn, (centre, (share * (box[2] - box[0]), share * (box[3] - box[1])), 0.0), 1, -1)
    return drawn > 0


def _run(image: Image, box: Window, core: float, margin: float) -> Mask:
    """One GrabCut of a small image: the part that hangs together with the sure lesion, without holes."""
    wide, high = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    height, width = image.shape[:2]
    field = (
        max(0, round(box[0] - wide)),
        max(0, round(box[1] - high)),
        min(width, round(box[2] + wide)),
        min(height, round(box[3] + high)),
    )
    inside, sure = _rectangle(image.shape, field), _ellipse(image.shape, box, core)
    labels = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
    labels[inside] = cv2.GC_PR_BGD
    labels[inside & _ellipse(image.shape, field, 1.0)] = cv2.GC_PR_FGD
    labels[sure] = cv2.GC_FGD
    if not sure.any() or not (labels % 2 == 0).any():  # GrabCut wants a pixel of each for its colour models
        return np.zeros((height, width), dtype=bool)
    cv2.setRNGSeed(SEED)
    background, lesion = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(image), labels, None, background, lesion, ROUNDS, cv2.GC_INIT_WITH_MASK)
    _, parts = cv2.connectedComponents(((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8))
    return fill_holes(np.isin(parts, np.unique(parts[sure])))
