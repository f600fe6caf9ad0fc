"""HyperKvasir: `labeled-images/<tract>/<kind>/<class>/<uuid>.jpg` with `image-labels.csv`, and `segmented-images/`.

The segmented images are a thousand of the class `polyps`, under the same names: they get their masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cogalign.data.importers.base import (
    Layout,
    Photograph,
    Rejected,
    image_files,
    missing_rows,
    read_table,
    require_folder,
)
from cogalign.data.importers.kvasir_seg import segmented

_COLUMNS = ("Video file", "Finding")


def read(folder: Path) -> Iterator[Photograph | Rejected]:
    """The labelled photographs, and the segmented ones. The 5-fold number goes to `official_fold`."""
    labelled = require_folder(folder, LAYOUT.name, "labeled-images")
    with_mask: set[str] = set()
    if (folder / "segmented-images" / "images").is_dir():
        for found in segmented(folder / "segmented-images", _existing(folder / "segmented-images"), "polyps"):
            if isinstance(found, Photograph):
                with_mask.add(found.path.stem)
                found = replace(found, key=f"polyps/{found.path.stem}")
            yield found
    yield from _labelled(labelled, _folds(folder / "official_splits" / "5_fold_split.csv"), with_mask)


def _labelled(folder: Path, folds: dict[str, int], with_mask: set[str]) -> Iterator[Photograph | Rejected]:
    """The labelled photographs whose class in the table, if there is a table, is their folder."""
    table = folder / "image-labels.csv"
    labels = {row["Video file"]: row["Finding"] for row in read_table(table, _COLUMNS)} if table.is_file() else {}
    seen = set()
    for class_folder in sorted(path for path in folder.glob("*/*/*") if path.is_dir()):
        for path in image_files(class_folder):
            seen.add(path.stem)
            stated = labels.get(path.stem, class_folder.name)
            if stated != class_folder.name:
                yield Rejected(path, f"{table.name} says {stated!r}, the folder {class_folder.name!r}")
            elif path.stem not in with_mask:
                attributes = {"official_fold": folds[path.name]} if path.name in folds else {}
                organ = "colon" if class_folder.parts[-3] == "lower-gi-tract" else None
                key = f"{class_folder.name}/{path.stem}"
                yield Photograph(path, class_folder.name, key, organ, attributes=attributes)
    yield from missing_rows(table, [name for name in labels if name not in seen])
    if labels and (unlisted := len(seen - set(labels))):
        yield Rejected(table, f"{unlisted} images have no row here; they are imported with their folder's class")


def _existing(folder: Path) -> Path | None:
    """The box file of the segmented images, if it is there."""
    path = folder / "bounding-boxes.json"
    return path if path.is_file() else None


def _folds(table: Path) -> dict[str, int]:
    """Official fold by file name."""
    if not table.is_file():
        return {}
    rows = read_table(table, ("file-name", "split-index"), delimiter=";")
    return {row["file-name"]: int(row["split-index"]) for row in rows if row["split-index"].isdecimal()}


LAYOUT = Layout("hyperkvasir", "HyperKvasir", "CC BY 4.0", read)
