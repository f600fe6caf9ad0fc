"""Tables of a data set, joined to its images."""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cogalign.cognition.anatomy import key as plain
from cogalign.data.cards.card import Table
from cogalign.data.cards.strict import nearest_of
from cogalign.data.cards.template import expand
from cogalign.data.importers.base import Rejected
from cogalign.data.importers.tree import Tree

MAX_TEXT = 2**29
"""Bytes of the largest table or annotation that is read: 512 MiB, ten times that of any known data set."""
Row = dict[str, str]


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file; a byte order mark is dropped.

    Raises:
        ValueError: the file is not in this encoding (names file, line and byte), or is above `MAX_TEXT`, or no file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would never end
        raise ValueError(f"{path}: not a file, wanted a text")
    if status.st_size > MAX_TEXT:
        raise ValueError(f"{path}: {status.st_size:,} bytes, which is above the limit of {MAX_TEXT:,} for a text")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: not {encoding}: line {line} has the byte {content[error.start]:#04x}; "
            f"save it as {encoding}, or give the table's `encoding` in the card, e.g. latin-1"
        ) from None
    except LookupError:
        raise ValueError(
            f"{path}: found the encoding {encoding!r}, wanted one that Python knows, e.g. latin-1"
        ) from None


def read_rows(path: Path, table: Table, columns: set[str]) -> list[Row]:
    """The rows of a table's file, texts stripped.

    Args:
        path: CSV, JSON lines (`.jsonl`), a JSON list of objects (`.json`), or words on lines.
        table: says how to read it.
        columns: columns that must be there.

    Raises:
        ValueError: not readable, or a column is missing; names the file and the nearest column.
    """
    text = read_text(path, table.encoding)
    is_json = path.suffix.lower() in (".jsonl", ".json")
    rows = _json_rows(path, text) if is_json else _csv_rows(path, text, table)
    found = list(rows[0]) if rows else []
    for name in sorted(columns - {"_file"}):
        if rows and name not in found:
            raise ValueError(f"{path}: wanted a column {name!r}, found {found} ({nearest_of(name, found)})")
    return [{"_file": path.stem, **row} for row in rows]


def _csv_rows(path: Path, text: str, table: Table) -> list[Row]:
    lines = io.StringIO(text, newline="")
    for _ in range(table.skip):
        lines.readline()
    if table.delimiter == " ":
        split: Iterator[list[str]] = (line.split() for line in lines)
    else:
        split = csv.reader(lines, delimiter=table.delimiter)
    try:
        cells = [[cell.strip() for cell in row] for row in split if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path}: not a table ({error})") from None
    header = list(table.header) or (cells.pop(0) if cells else [])
    return [dict(zip(header, row + [""] * (len(header) - len(row)), strict=False)) for row in cells]


def _json_rows(path: Path, text: str) -> list[Row]:
    try:
        if path.suffix.lower() == ".jsonl":
            content: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"{path}: found {type(content).__name__}, wanted a list of objects")
    return [{str(name): _cell(value) for name, value in row.items()} for row in content]


def _cell(value: Any) -> str:
    """A JSON value as the text of a cell."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


class Joined:
    """A table whose rows are asked for by image; it knows which rows no image asked for."""

    def __init__(self, tree: Tree, table: Table, columns: set[str]) -> None:
        self.table = table
        self.paths = tree.all(table.file)
        if table.required and not self.paths:
            raise FileNotFoundError(f"{tree.root}: wanted the table {table.file!r}, which is not there")
        wanted = columns | set(table.key) | set(table.columns)
        self.rows = [row for path in self.paths for row in read_rows(path, table, wanted)]
        self._used: set[int] = set()
        self._index: dict[tuple[str, ...], list[int]] = {}
        self.unlisted = 0
        self.first_unlisted = ""
        for number, row in enumerate(self.rows):
            self._index.setdefault(self._key(row), []).append(number)

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(self._plain(row.get(column, "")) for column in self.table.key)

    def _plain(self, text: str) -> str:
        return plain(text) if self.table.ignore_case else text

    def of(self, fields: Mapping[str, str]) -> list[Row]:
        """The rows of an image.

        Raises:
            ValueError: there are several, and the card does not say that there may be.
        """
        if not self.rows:
            return []
        wanted = tuple(self._plain(expand(template, fields) or "") for template in self.table.key.values())
        numbers = self._index.get(wanted, [])
        self._used.update(numbers)
        if not numbers:
            self.unlisted += 1
            self.first_unlisted = self.first_unlisted or fields["name"]
        rows = list({tuple(self.rows[n].items()): self.rows[n] for n in numbers}.values())
        if len(rows) > 1 and not self.table.many:
            differing = [name for name in rows[0] if len({row.get(name) for row in rows}) > 1]
            raise ValueError(
                f"{self.paths[0].name} has {len(rows)} rows for it, which differ in {', '.join(differing)}"
            )
        return rows

    def unused(self) -> list[str]:
        """Key of each row that no image asked for, by its number in the file."""
        return [self.name_of(row) if number not in self._used else "" for number, row in enumerate(self.rows)]

    def name_of(self, row: Row) -> str:
        """The key of a row for messages."""
        return "/".join(reversed([row.get(column, "") for column in self.table.key]))


def unmatched(tables: list[Joined]) -> Iterator[Rejected]:
    """One line for the rows of a file without an image, and one for images without a row.

    Parts that read the same file with different keys are taken together: a row is missing if no part has its image.
    """
    by_file: dict[tuple[Path, ...], list[Joined]] = {}
    for table in tables:
        if table.paths:
            by_file.setdefault(tuple(table.paths), []).append(table)
    for paths, group in by_file.items():
        names = [row[0] for row in zip(*(table.unused() for table in group), strict=True) if all(row)]
        if names:
            yield Rejected(paths[0], f"{len(names)} rows have no image, the first: {names[0]}")
        for table in group:
            if table.unlisted and table.rows and not table.table.required:
                text = f"{table.unlisted} images have no row here, the first: {table.first_unlisted}"
                yield Rejected(paths[0], f"{text}; they are imported")
