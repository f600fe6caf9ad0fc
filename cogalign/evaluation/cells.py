"""Figures as the text of the report's cells."""

from __future__ import annotations

from typing import Any

Values = tuple[float | None, tuple[float, float] | None]
"""A figure and its interval."""


def percent(value: float | None) -> str:
    """A share as text, one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}%"


def with_interval(value: float | None, interval: Any, scale: float = 100.0, unit: str = "%") -> str:
    """A value and below it its interval, e.g. `91.0%` and `87.2 – 94.1`; a dash for None."""
    if value is None:
        return "–"
    text = f"{scale * value:.1f}{unit}"
    return f"{text}\n{scale * interval[0]:.1f} – {scale * interval[1]:.1f}" if interval else text
