"""How good are masks that GrabCut finds in boxes, and does their confidence tell?

Compares them with the experts' masks of Kvasir-SEG, for which the box file is the only evidence that is given:

    python tests/benchmarks/masks_from_boxes.py [--realdata ../shared/realdata] [--json out.json]

Figures are given for all pairs and for those on which the confidence was not made: it was shaped on every third one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import spearmanr

from cogalign.counterfactual.evidence import FoundMask, find_mask
from cogalign.data.cards.find import read_card
from cogalign.data.case import Box, Case
from cogalign.data.images import load_mask, load_rgb
from cogalign.data.importers.base import Photograph
from cogalign.data.importers.importer import read_records
from cogalign.recipe import MaskSettings

SHAPED_ON = 3
LIMITS = (0.0, 0.3, 0.5, 0.7)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return 2.0 * np.count_nonzero(first & second) / max(1, np.count_nonzero(first) + np.count_nonzero(second))


def ellipse(shape: tuple[int, ...], case: Case) -> np.ndarray:
    """The ellipses in the boxes: the guess that is never used."""
    drawn = np.zeros(shape[:2], dtype=np.uint8)
    for box in case.boxes:
        centre = ((box.xmin + box.xmax) / 2, (box.ymin + box.ymax) / 2)
        cv2.ellipse(drawn, (centre, (box.xmax - box.xmin, box.ymax - box.ymin), 0.0), 1, -1)
    return drawn > 0


def interval(values: np.ndarray, rounds: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (rounds, len(values))).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--realdata", type=Path, default=Path("../shared/realdata"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    settings = MaskSettings(evidence=["box"], min_confidence=0.0)
    rows, reasons, seconds = [], Counter[str](), 0.0
    _, records = read_records(read_card("kvasir-seg"), arguments.realdata / "Kvasir-SEG")
    photographs = [one for one in records if isinstance(one, Photograph) and one.mask]
    for number, one in enumerate(sorted(photographs, key=lambda one: one.path.name)):
        image, expert = np.asarray(load_rgb(one.path)), load_mask(one.files[1])
        boxes = tuple(Box("polyp", *map(int, (b.xmin, b.ymin, b.xmax, b.ymax))) for b in one.boxes)
        case = Case(one.key, one.path.name, ("polyp",), "test", boxes=boxes)
        start = time.perf_counter()
        found = find_mask(image, case, None, settings, 0.0, 1.0)
        seconds += time.perf_counter() - start
        guess = dice(ellipse(image.shape, case), expert)
        if isinstance(found, FoundMask):
            rows.append((number % SHAPED_ON, dice(found.mask, expert), found.confidence, guess, len(one.boxes)))
        else:
            reasons[found.reason] += 1
    table = np.array(rows)
    result: dict[str, object] = {
        "pairs": len(photographs),
        "without_mask": dict(reasons),
        "ms_per_image": round(1000 * seconds / len(photographs), 1),
    }
    for name, chosen in (("all", table), ("held_out", table[table[:, 0] != 0])):
        _, reached, sure, guess, boxes = chosen.T
        lines = {}
        for limit in LIMITS:
            kept = reached[sure >= limit]
            lines[str(limit)] = {
                "kept": round(len(kept) / len(reached), 3),
                "dice": round(float(kept.mean()), 4),
                "ci": [round(value, 4) for value in interval(kept)],
                "dice_below": round(float(reached[sure < limit].mean()), 4) if (sure < limit).any() else None,
                "worst_5_percent": round(float(np.quantile(kept, 0.05)), 3),
            }
        result[name] = {
            "n": len(reached),
            "spearman": round(float(spearmanr(reached, sure).statistic), 3),
            "spearman_single_box": round(float(spearmanr(reached[boxes == 1], sure[boxes == 1]).statistic), 3),
            "ellipse_dice": round(float(guess.mean()), 4),
            "by_limit": lines,
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
