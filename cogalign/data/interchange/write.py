"""Files of rows: JSON lines and JSON lists, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.caseset import typed_order
from cogalign.training.atomic import atomic_file

RowOf = Callable[[Case], dict[str, Any]]


def write_lines(path: Path, cases: Sequence[Case], row: RowOf) -> None:
    """Write the rows of cases as JSON lines, one at a time; a file of this name stays if a row cannot be made."""
    with atomic_file(path) as file:
        for index in typed_order(
            case.to_row() for case in cases
        ):  # the library datasets takes types from the first rows
            file.write(json.dumps(row(cases[index]), ensure_ascii=False).encode() + b"\n")


def write_list(path: Path, cases: Sequence[Case], row: RowOf) -> None:
    """Write the rows of cases as a JSON list, an entry a line, one at a time."""
    with atomic_file(path) as file:
        for index, case in enumerate(cases):
            file.write((b",\n" if index else b"[\n") + json.dumps(row(case), ensure_ascii=False).encode())
        file.write(b"\n]\n" if cases else b"[]\n")
