"""How well masks agree with the experts': Dice, IoU and boundary F1 an image, with intervals over groups."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor
from torchmetrics.functional.segmentation import dice_score, mean_iou

Mask = NDArray[np.bool_]
TOLERANCE = 0.0075
"""Distance of two boundaries that counts as none, over the image's diagonal (Csurka et al. 2013, BMVC, section 3)."""
MIN_AREA = 0.001
"""A mask on a normal image counts as a false positive from this share of the image on."""


def overlap(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and IoU [n] of bool masks [n, 1, H, W]; 1 where both are empty."""
    found, wanted = predicted.bool(), truth.bool()
    dice = dice_score(found, wanted, num_classes=1, average="none", input_format="one-hot")[:, 0]
    iou = mean_iou(found, wanted, num_classes=1, per_class=True, input_format="one-hot")[:, 0]
    empty = ~(found.flatten(1).any(1) | wanted.flatten(1).any(1))
    return torch.where(empty, 1.0, dice.float()), torch.where(empty, 1.0, iou.float())


def boundary_f1(predicted: Mask, truth: Mask, tolerance: float = TOLERANCE) -> float:
    """F1 of the boundaries of two masks [H, W]: shares of either that lie near the other (Csurka et al. 2013).

    Args:
        predicted: the mask that is judged.
        truth: the expert's.
        tolerance: what counts as near, over the image's diagonal.

    Returns:
        1 if both are empty, 0 if one is.
    """
    found, wanted = _boundary(predicted), _boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    near = max(1.0, tolerance * float(np.hypot(*truth.shape)))
    precision = float((ndimage.distance_transform_edt(~wanted)[found] <= near).mean())
    recall = float((ndimage.distance_transform_edt(~found)[wanted] <= near).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: Mask) -> Mask:
    """The pixels of a mask that touch its outside; the image's border is no boundary."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, border_value=1), dtype=bool)


def interval_by_group(
    values: Sequence[float], groups: Sequence[str], resamples: int, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of a mean: percentile bootstrap over groups, since photographs of one scene are not independent.

    Args:
        values: one an image.
        groups: the group of each image.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        Low and high; None with fewer than two groups.
    """
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(index)

    def mean(total: Any, number: Any, axis: int = -1) -> Any:
        return np.sum(total, axis=axis) / np.sum(number, axis=axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all values alike
        found = stats.bootstrap(
            (sums, counts), mean, paired=True, vectorized=True, n_resamples=resamples, method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def summary(rows: Sequence[dict[str, Any]], resamples: int, seed: int = 0) -> dict[str, Any]:
    """Means with intervals over the images of one split.

    Args:
        rows: one an image: `group`, `normal`, and `dice`, `iou`, `boundary_f1` (lesions) or `false_positive` (normal).
        resamples: of each interval.
        seed: of the resampling.
    """
    lesions = [row for row in rows if not row["normal"]]
    groups = [row["group"] for row in lesions]
    found: dict[str, Any] = {"n": len(lesions)}
    for name in ("dice", "iou", "boundary_f1", "confidence"):
        values = [row[name] for row in lesions]
        found[name] = float(np.mean(values)) if values else None
        found[f"{name}_ci"] = interval_by_group(values, groups, resamples, seed)
    found["missed"] = sum(row["dice"] == 0 for row in lesions)
    normals = [row for row in rows if row["normal"]]
    found["normal_n"] = len(normals)
    if normals:
        false = [float(row["false_positive"]) for row in normals]
        found["normal_false_positive"] = float(np.mean(false))
        found["normal_false_positive_ci"] = interval_by_group(false, [row["group"] for row in normals], resamples, seed)
    return found
