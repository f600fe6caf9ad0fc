"""What a reader of a layout yields, and small tools that the readers share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogalign.data.case import Box

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class Photograph:
    """One image of a data set with what its annotation says."""

    path: Path
    label: str
    """Name of the class as the data set writes it."""
    key: str
    """Unique in the data set: class and file name, since file names alone are not."""
    organ: str | None = None
    """Organ that the layout tells beyond the class name; None leaves it to the taxonomy."""
    mask_path: Path | None = None
    boxes: tuple[Box, ...] = ()
    """In pixels of the file; `finding` holds the data set's own label."""
    size: tuple[int, int] | None = None
    """Width and height that the annotation states, if it does."""
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A file or table row that cannot be used."""

    path: Path
    reason: str


Reader = Callable[[Path], Iterator[Photograph | Rejected]]


@dataclass(frozen=True)
class Layout:
    """A data set that can be imported."""

    name: str
    """As a recipe writes it in `data.imports[].layout`."""
    title: str
    licence: str
    read: Reader
    """Yields the photographs of the data set's folder; raises FileNotFoundError if it is not this layout."""


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def require_folder(folder: Path, layout: str, wanted: str) -> Path:
    """`folder / wanted`.

    Raises:
        FileNotFoundError: it is not there; the message says what is in `folder`.
    """
    path = folder / wanted
    if path.is_dir():
        return path
    found = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
    raise FileNotFoundError(f"{folder}: not the layout {layout!r}: wanted a folder {wanted!r} in it, found {found}")


def read_table(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file with the columns that are needed.

    Raises:
        ValueError: a column is missing or the text is not UTF-8; the message names the file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{path}: found the columns {reader.fieldnames}, wanted also {missing[0]!r}")
            return [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table in UTF-8 ({error})") from None


def read_boxes(path: Path) -> dict[str, Any]:
    """A box file of Kvasir: `{stem: {"height": h, "width": w, "bbox": [{"label", "xmin", "ymin", "xmax", "ymax"}]}}`.

    Raises:
        ValueError: the file is no JSON object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}, wanted an object with one entry for each image")
    return content


def missing_rows(table: Path, names: list[str]) -> Iterator[Rejected]:
    """One line for the rows of a table whose image is not there, if there are any."""
    if names:
        yield Rejected(table, f"{len(names)} rows have no image, the first: {names[0]}")
