"""A summary of any depth as tables of texts, for the contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of texts: each row begins with its name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table(summary: Mapping[str, Any]) -> list[Table]:
    """The tables of a summary.

    A mapping of mappings becomes a table (inner keys are columns); deeper ones become a table each, with the way to
    them as title. Single values of a level stand in a table of names and values. A value and its `_ci` share a cell.

    Args:
        summary: mappings with texts as keys; numbers, texts, lists or None at the ends.
    """
    return _tables(summary, ())


def _tables(level: Mapping[str, Any], way: tuple[str, ...]) -> list[Table]:
    """The tables of a mapping that is reached over some keys."""
    title = " / ".join(_words(key) for key in way)
    single = {key: value for key, value in level.items() if not isinstance(value, Mapping)}
    inner = {key: value for key, value in level.items() if isinstance(value, Mapping) and value}
    flat = {key: value for key, value in inner.items() if not any(isinstance(v, Mapping) for v in value.values())}
    tables = []
    if single:
        cells = _cells(single)
        tables.append(Table(title, ("", "value"), tuple((name, text) for name, text in cells.items())))
    if flat:
        cells_of = {key: _cells(value) for key, value in flat.items()}
        columns = tuple(dict.fromkeys(name for cells in cells_of.values() for name in cells))
        rows = tuple((_words(key), *(cells.get(column, "") for column in columns)) for key, cells in cells_of.items())
        tables.append(Table(title, ("", *columns), rows))
    for key, value in inner.items():
        if key not in flat:
            tables += _tables(value, (*way, key))
    return tables


def _cells(values: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of single values; an interval stands behind its value."""
    cells = {}
    for key, value in values.items():
        if key.endswith("_ci") and key.removesuffix("_ci") in values:
            continue
        text = _text(value)
        interval = values.get(f"{key}_ci")
        cells[_words(key)] = text if interval is None else f"{text} {_text(interval)}"
    return cells


def _words(key: object) -> str:
    return str(key).replace("_", " ")


def _text(value: Any) -> str:
    """A value as text."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        inner = [_text(item) for item in value]
        numbers = len(value) == 2 and all(isinstance(item, int | float) for item in value)
        return f"[{inner[0]}, {inner[1]}]" if numbers else ", ".join(inner)
    return str(value)
