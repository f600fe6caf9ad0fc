"""Kvasir-SEG: `images/<id>.jpg`, `masks/<id>.jpg`, `kavsir_bboxes.json` (the misspelling is official)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogalign.data.case import Box
from cogalign.data.importers.base import (
    Layout,
    Photograph,
    Rejected,
    image_files,
    missing_rows,
    read_boxes,
    require_folder,
)

BOX_FILES = ("kavsir_bboxes.json", "kvasir_bboxes.json")


def read(folder: Path) -> Iterator[Photograph | Rejected]:
    """The photographs of Kvasir-SEG; every one has a polyp."""
    require_folder(folder, LAYOUT.name, "images")
    require_folder(folder, LAYOUT.name, "masks")
    box_file = next((folder / name for name in BOX_FILES if (folder / name).is_file()), None)
    yield from segmented(folder, box_file, "polyps")


def segmented(folder: Path, box_file: Path | None, label: str) -> Iterator[Photograph | Rejected]:
    """Photographs with a mask each, and boxes where the box file has them. HyperKvasir uses the same schema."""
    entries = read_boxes(box_file) if box_file else {}
    masks = {path.stem: path for path in image_files(folder / "masks")}
    images = image_files(folder / "images")
    for path in images:
        if path.stem not in masks:
            yield Rejected(path, "no mask of the same name")
            continue
        entry = entries.get(path.stem)
        try:
            boxes, size = _boxes(entry) if entry is not None else ((), None)
        except (KeyError, TypeError, ValueError):
            yield Rejected(path, f"its entry in the box file does not parse: {entry!r}"[:300])
            continue
        yield Photograph(path, label, path.stem, "colon", masks[path.stem], boxes, size)
    stems = {path.stem for path in images}
    if box_file:
        yield from missing_rows(box_file, [stem for stem in entries if stem not in stems])
    for stem in masks.keys() - stems:
        yield Rejected(masks[stem], "a mask without an image")


def _boxes(entry: Any) -> tuple[tuple[Box, ...], tuple[int, int]]:
    """Boxes and (width, height) of one entry of the box file."""
    boxes = tuple(
        Box(str(box["label"]), int(box["xmin"]), int(box["ymin"]), int(box["xmax"]), int(box["ymax"]))
        for box in entry["bbox"]
    )
    return boxes, (int(entry["width"]), int(entry["height"]))


LAYOUT = Layout("kvasir-seg", "Kvasir-SEG", "research and education; commercial use needs permission", read)
