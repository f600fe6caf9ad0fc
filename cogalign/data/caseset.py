"""A case set on disk: a folder of PNG images with one `metadata.jsonl`.

It is a Hugging Face `imagefolder`: `datasets.load_dataset("imagefolder", data_dir=root)` opens it.
That library turns `file_name`, `mask_file_name` and `source_file_name` into the image columns
`image`, `mask` and `source`, and takes the type of each column from the first 10 MB of rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.images import image_size, load_mask, load_rgb
from cogalign.data.paths import file_stem, inside, split_word
from cogalign.training.atomic import write_text

METADATA = "metadata.jsonl"
ImageLike = np.ndarray | Image.Image | Path


@dataclass(frozen=True)
class CaseSet:
    """The cases of a folder. Images are read when they are asked for."""

    root: Path
    cases: list[Case]

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in the order in which they first occur."""
        return list(dict.fromkeys(case.split for case in self.cases))

    @cached_property
    def by_id(self) -> dict[str, Case]:
        """Cases by id."""
        return {case.id: case for case in self.cases}

    def split(self, name: str) -> list[Case]:
        """The cases of a split.

        Raises:
            ValueError: the case set has no such split; the message names those that it has.
        """
        if name not in self.splits:
            raise ValueError(f"{self.root}: no split {name!r}, wanted one of {', '.join(self.splits)}")
        return [case for case in self.cases if case.split == name]

    def path(self, relative: str) -> Path:
        """The path of a file of the case set; see `inside` for the paths that are refused."""
        return inside(self.root, relative)

    def image(self, case: Case) -> Image.Image:
        """The image of a case as RGB; see `load_rgb` for the errors."""
        return load_rgb(self.path(case.file_name))

    def mask(self, case: Case) -> np.ndarray | None:
        """The mask of a case as a bool array (height, width), or None if it has none.

        Raises:
            FileNotFoundError, ValueError: the file is missing, unreadable or not as large as the image.
        """
        if case.mask_file_name is None:
            return None
        mask = load_mask(self.path(case.mask_file_name))
        width, height = image_size(self.path(case.file_name))
        if mask.shape != (height, width):
            raise ValueError(
                f"case {case.id!r}, mask {case.mask_file_name}: found {mask.shape[1]} x {mask.shape[0]} pixels, "
                f"wanted {width} x {height} as the image"
            )
        return mask


class JsonError(ValueError):
    """A line is no JSON in UTF-8."""


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and content of each line of a file that is not blank; a `JsonError` in place of what is no JSON.

    Raises:
        OSError: the file cannot be read. Bad content raises nothing.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                content = JsonError(str(error))
            yield number, content


def parse_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None, Case | str]]:
    """Line number, raw row (None if it is no JSON object) and case, or what is wrong with it, for each line of a file.

    Raises:
        FileNotFoundError: there is no such file. Bad content raises nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a case set is a folder of images with a {METADATA}")
    for number, row in json_lines(path):
        if isinstance(row, JsonError):
            yield number, None, f"not JSON ({row})"
            continue
        if not isinstance(row, dict):
            yield number, None, f"found {type(row).__name__}, wanted a JSON object"
            continue
        try:
            yield number, row, Case.from_row(row)
        except ValueError as error:
            yield number, row, str(error)


def read_case_set(root: str | os.PathLike[str]) -> CaseSet:
    """The case set of a folder. Images are not opened; `cogalign data check` does that.

    Raises:
        FileNotFoundError: there is no such folder, or no `metadata.jsonl` in it.
        ValueError: a row does not parse, an id occurs twice, or there is no row; names file and line.
    """
    folder = Path(root)
    metadata = folder / METADATA
    cases: list[Case] = []
    lines: dict[str, int] = {}
    for number, _, case in parse_rows(metadata):
        if isinstance(case, str):
            raise ValueError(f"{metadata} line {number}: {case}")
        if case.id in lines:
            raise ValueError(f"{metadata} line {number}: id {case.id!r} is already on line {lines[case.id]}")
        lines[case.id] = number
        cases.append(case)
    if not cases:
        raise ValueError(f"{metadata}: found no case, wanted one JSON object a line")
    return CaseSet(root=folder, cases=cases)


class CaseSetWriter:
    """Writes a case set. `metadata.jsonl` comes last, by rename: a folder without it is unfinished.

    Use it as a context manager. On entry an older `metadata.jsonl` of the folder is removed; an error inside
    the block leaves none.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._cases: list[Case] = []
        self._ids: set[str] = set()
        self._files: dict[str, bool] = {}  # file name -> whether it is a shared source image

    def __enter__(self) -> CaseSetWriter:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / METADATA).unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def add(
        self, case: Case, image: ImageLike, mask: np.ndarray | None = None, source: ImageLike | None = None
    ) -> None:
        """Write one case.

        Args:
            case: `file_name`, `mask_file_name` and `source_file_name` say where the files go (`.png`).
            image: uint8 array (height, width, 3), PIL image, or the path of an image.
            mask: array (height, width), nonzero on the lesion; exactly when `case.mask_file_name` is set.
            source: image for `case.source_file_name`; several cases may name the same file, it is written once.

        Raises:
            ValueError: an id or file name comes twice, a path leaves the folder or holds the name of a split,
                mask and image differ in size, or an image cannot be read.
        """
        if case.id in self._ids:
            raise ValueError(f"case {case.id!r}: the id was already written")
        for name, value in (("mask", mask), ("source", source)):
            file_name = getattr(case, f"{name}_file_name")
            if (file_name is None) != (value is None):
                found = f"{name} {'missing' if value is None else 'given'}"
                raise ValueError(f"case {case.id!r}: {found}, but {name}_file_name is {file_name!r}")
        picture = _as_rgb(image)
        if mask is not None and mask.shape != (picture.height, picture.width):
            raise ValueError(
                f"case {case.id!r}: found a mask of shape {mask.shape}, wanted {(picture.height, picture.width)}"
            )
        self._save(case, case.file_name, picture)
        if case.mask_file_name is not None and mask is not None:
            self._save(case, case.mask_file_name, Image.fromarray(mask.astype(bool).astype(np.uint8) * 255))
        if case.source_file_name is not None and source is not None and not self._files.get(case.source_file_name):
            self._save(case, case.source_file_name, _as_rgb(source), shared=True)
        self._ids.add(case.id)
        self._cases.append(case)

    def revise(self, cases: Sequence[Case]) -> None:
        """Replace the rows of the cases written so far, e.g. once their splits are known; the files stay.

        Raises:
            ValueError: the cases have other ids or file names than those written.
        """
        if [(c.id, c.file_name) for c in cases] != [(c.id, c.file_name) for c in self._cases]:
            raise ValueError(f"{self.root}: wanted the same ids and file names as those written, in the same order")
        self._cases = list(cases)

    def _save(self, case: Case, file_name: str, image: Image.Image, shared: bool = False) -> None:
        """Write one PNG after checks of its name."""
        word = split_word(file_name)
        if word:
            raise ValueError(
                f"case {case.id!r}, file {file_name!r}: the word {word!r} makes Hugging Face's imagefolder guess splits "
                f"from file names, wanted a name such as images/{file_stem(case.id)}.png"
            )
        if not file_name.endswith(".png"):
            raise ValueError(f"case {case.id!r}, file {file_name!r}: wanted a name that ends in .png")
        if file_name in self._files:
            raise ValueError(f"case {case.id!r}, file {file_name!r}: the file was already written")
        path = inside(self.root, file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG", compress_level=1)
        self._files[file_name] = shared

    def _finish(self) -> None:
        """Write `metadata.jsonl` by rename."""
        if not self._cases:
            raise ValueError(f"{self.root}: no case was written")
        write_metadata(self.root, [case.to_row() for case in self._cases])


def write_metadata(root: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `metadata.jsonl` by rename from rows of `Case.to_row`.

    The rows in which a column has its first value come first: Hugging Face takes a column's type from the
    first 10 MB, and a mask or box that comes later would break the table.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in map(rows.__getitem__, typed_order(rows)))
    write_text(root / METADATA, text)


def _as_rgb(image: ImageLike) -> Image.Image:
    """RGB image of an array, a PIL image or a file."""
    if isinstance(image, Path):
        return load_rgb(image)
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: found {image.dtype} of shape {image.shape}, wanted uint8 of shape (height, width, 3)")
    return Image.fromarray(image)


def typed_order(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Indices of rows of `Case.to_row`: first those in which a column, or a section of the keywords, has its first value."""
    leaders: list[int] = []
    rest: list[int] = []
    seen: set[str] = set()
    for index, row in enumerate(rows):
        there = {name for name, value in row.items() if value}
        there |= {f"keywords.{section}" for section, words in row["keywords"].items() if words}
        (rest if there <= seen else leaders).append(index)
        seen |= there
    return leaders + rest
