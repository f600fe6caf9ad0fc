"""The trained net against the experts' masks, image by image, at the images' own sizes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.models.segmenter import BATCH, Calibration, Segmenter, sigmoid
from cogalign.segmenter.calibration import PIXELS, fit_confidence, fit_temperature, sample_pixels
from cogalign.segmenter.metrics import MIN_AREA, boundary_f1, overlap
from cogalign.training.atomic import write_text
from cogalign.training.progress import track
from cogalign.training.seeding import derive_seed

COLUMNS = ("split", "id", "dataset", "group", "normal", "dice", "iou", "boundary_f1", "area", "predicted_area",
           "false_positive", "confidence")  # fmt: skip


@dataclass
class Judged:
    """One image: its row of `cases.csv`, and a sample of its logits for the calibration."""

    case: Case
    row: dict[str, Any]
    logits: NDArray[np.float32]
    """Of pixels anywhere."""
    truth: NDArray[np.float32]
    """Of the same pixels, 0 or 1."""
    inside: NDArray[np.float32]
    """Logits of pixels inside the predicted mask."""

    def mean_probability(self, temperature: float) -> float:
        """Mean probability inside the predicted mask; 0 if it is empty."""
        return float(sigmoid(self.inside, temperature).mean()) if self.inside.size else 0.0


def judge(segmenter: Segmenter, case_set: CaseSet, cases: Sequence[Case], split: str) -> list[Judged]:
    """Compare the net's masks (probability above 1/2) with the truth; a normal case has an empty one.

    Args:
        segmenter: calibration is not used; a temperature moves no pixel across 1/2.
        case_set: holds the images.
        cases: with a mask, or normal.
        split: its name.

    Raises:
        FileNotFoundError, ValueError: an image or mask is missing, unreadable or of another size.
    """
    found = []
    for batch in track(list(_batches(cases)), f"segment {split}"):
        images = [np.asarray(case_set.image(case)) for case in batch]
        for case, image, logits in zip(batch, images, segmenter.logits(images), strict=True):
            mask = None if case.is_normal else case_set.mask(case)
            truth = np.zeros(image.shape[:2], bool) if mask is None else mask
            found.append(_judged(case, logits, truth, split))
    return found


def _batches(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    return (cases[start : start + BATCH] for start in range(0, len(cases), BATCH))


def _judged(case: Case, small: NDArray[np.float32], truth: NDArray[np.bool_], split: str) -> Judged:
    """Row and samples of one image, from the logits at the net's side."""
    import cv2

    height, width = truth.shape
    logits = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    mask = logits > 0
    dice, iou = (float(x[0]) for x in overlap(torch.from_numpy(mask)[None, None], torch.from_numpy(truth)[None, None]))
    row: dict[str, Any] = {"split": split, "id": case.id, "dataset": case.dataset, "group": case.group or case.id,
                           "normal": case.is_normal, "area": float(truth.mean()), "predicted_area": float(mask.mean())}  # fmt: skip
    if case.is_normal:
        row["false_positive"] = bool(mask.mean() >= MIN_AREA)
    else:
        row |= {"dice": dice, "iou": iou, "boundary_f1": boundary_f1(mask, truth)}
    rng = np.random.default_rng(derive_seed(0, "pixels", case.id))
    values, wanted = sample_pixels(logits, truth, rng)
    inside = logits[mask]
    if inside.size > PIXELS:
        inside = rng.choice(inside, PIXELS, replace=False)
    return Judged(case, row, values, wanted, inside)


def calibrate(judged: Sequence[Judged]) -> Calibration:
    """Temperature from the pixels of all images, expected Dice from the masks on images with lesions."""
    temperature = fit_temperature(
        np.concatenate([one.logits for one in judged]), np.concatenate([one.truth for one in judged])
    )
    masks = [one for one in judged if not one.row["normal"] and one.inside.size]
    knots = fit_confidence([one.mean_probability(temperature) for one in masks], [one.row["dice"] for one in masks])
    return Calibration(temperature, *knots)


def add_confidence(judged: Sequence[Judged], calibration: Calibration) -> None:
    """Write the calibrated confidence of each mask into its row; 0 for an empty one."""
    for one in judged:
        mean = one.mean_probability(calibration.temperature)
        known = float(np.interp(mean, calibration.probability, calibration.dice))
        one.row["confidence"] = known if one.inside.size else 0.0


def write_cases(judged: Sequence[Judged], path: Path) -> None:
    """Write `cases.csv`: a row an image."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in judged:
        writer.writerow({name: _cell(one.row.get(name)) for name in COLUMNS})
    write_text(path, text.getvalue())


def _cell(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
