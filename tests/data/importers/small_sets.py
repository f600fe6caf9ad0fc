"""Miniature data sets in official layouts."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cogalign.data.cards.find import read_card
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.importers.importer import QUARANTINE, import_card

Rows = list[dict[str, str]]


def photograph(path: Path, seed: int, size: tuple[int, int] = (60, 48)) -> None:
    """A JPEG that resembles no other: smooth noise."""
    noise = np.random.default_rng(seed).random((6, 8, 3)).astype(np.float32)
    smooth = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((smooth.clip(0, 1) * 255).astype(np.uint8)).save(path, quality=95)


def lesion_mask(path: Path, size: tuple[int, int] = (60, 48)) -> None:
    """A three-channel JPEG mask with grey fringes: x 10 to 29, y 12 to 27."""
    mask = np.zeros((size[1], size[0], 3), np.uint8)
    mask[12:28, 10:30] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path, quality=60)


def box_entry(size: tuple[int, int] = (60, 48)) -> dict[str, object]:
    box = {"label": "polyp", "xmin": 10, "ymin": 12, "xmax": 30, "ymax": 28}
    return {"width": size[0], "height": size[1], "bbox": [box]}


def run(card: str, src: Path, out: Path, **options: object) -> tuple[CaseSet, Rows]:
    """Import with one process; the case set and the lines of the quarantine."""
    import_card(read_card(card), src, out, workers=1, **options)  # type: ignore[arg-type]
    return read_case_set(out), quarantine(out)


def quarantine(out: Path) -> Rows:
    return [json.loads(line) for line in (out / QUARANTINE).read_text().splitlines()]


def write_kvasir_seg(folder: Path, count: int = 4) -> Path:
    for number in range(count):
        photograph(folder / f"images/cju{number}.jpg", number)
        lesion_mask(folder / f"masks/cju{number}.jpg")
    (folder / "kavsir_bboxes.json").write_text(json.dumps({f"cju{n}": box_entry() for n in range(count)}))
    return folder
