"""Files of rows: JSON lines and JSON lists, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.training.atomic import atomic_file

RowOf = Callable[[Case], dict[str, Any]]


def leaders_first(cases: Sequence[Case]) -> list[Case]:
    """The cases, but first those in which a field has its first value.

    The library datasets takes the type of a column from the first rows: one that is empty there and comes later would
    break the table.
    """
    chosen: dict[int, None] = {}
    names = [name for name in cases[0].to_row() if name != "attributes"] if cases else []
    for name in names:
        first = next((index for index, case in enumerate(cases) if getattr(case, name)), None)
        if first is not None:
            chosen[first] = None
    for section in dict.fromkeys(section for case in cases for section in case.keywords):
        chosen[next(index for index, case in enumerate(cases) if case.keywords.get(section))] = None
    leaders = sorted(chosen)
    return [cases[index] for index in leaders] + [case for index, case in enumerate(cases) if index not in chosen]


def write_lines(path: Path, cases: Sequence[Case], row: RowOf) -> None:
    """Write the rows of cases as JSON lines, one at a time; a file of this name stays if a row cannot be made."""
    with atomic_file(path) as file:
        for case in leaders_first(cases):
            file.write(json.dumps(row(case), ensure_ascii=False).encode() + b"\n")


def write_list(path: Path, cases: Sequence[Case], row: RowOf) -> None:
    """Write the rows of cases as a JSON list, an entry a line, one at a time."""
    with atomic_file(path) as file:
        for index, case in enumerate(cases):
            file.write((b",\n" if index else b"[\n") + json.dumps(row(case), ensure_ascii=False).encode())
        file.write(b"\n]\n" if cases else b"[]\n")
