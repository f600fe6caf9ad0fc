"""A few of many, evenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread_evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items (cases, ids) at even distances, in order; all of them for None."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[(2 * k + 1) * len(items) // (2 * limit)] for k in range(limit)]
