"""GastroVision: `Gastrovision/<Class>/<file>.jpg`, `GastroVision_metadata.csv`, `Split/{train,validate,test}.csv`.

File names are not unique: one name occurs in up to eight classes. The key is class and file name.
"""

from __future__ import annotations

from collections.abc import Iterator
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

TABLE = "GastroVision_metadata.csv"


def read(folder: Path) -> Iterator[Photograph | Rejected]:
    """The photographs of all classes, with the official split, where there is one, as `official_split`."""
    images = require_folder(folder, LAYOUT.name, "Gastrovision")
    official = _official_splits(folder / "Split")
    seen = set()
    for class_folder in sorted(path for path in images.iterdir() if path.is_dir()):
        for path in image_files(class_folder):
            pair = (path.name, class_folder.name)
            seen.add(pair)
            attributes = {"official_split": official[pair]} if pair in official else {}
            yield Photograph(path, class_folder.name, f"{class_folder.name}/{path.stem}", attributes=attributes)
    table = folder / TABLE
    if table.is_file():
        rows = [(row["Filename"], row["Class"]) for row in read_table(table, ("Filename", "Class"))]
        yield from missing_rows(table, [f"{label}/{name}" for name, label in rows if (name, label) not in seen])
        if unlisted := len(seen - set(rows)):
            yield Rejected(table, f"{unlisted} images have no row here; they are imported with their folder's class")


def _official_splits(folder: Path) -> dict[tuple[str, str], str]:
    """Official split by (file name, class)."""
    splits = {}
    for name in ("train", "validate", "test"):
        table = folder / f"{name}.csv"
        if table.is_file():
            splits.update({(row["Filename"], row["Class"]): name for row in read_table(table, ("Filename", "Class"))})
    return splits


LAYOUT = Layout("gastrovision", "GastroVision", "reported as CC BY 4.0; the authors' repository states none", read)
