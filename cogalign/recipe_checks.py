"""The one check that all settings share."""

from __future__ import annotations


def require(condition: bool, field_name: str, found: object, wanted: str) -> None:
    """Raise a `ValueError` that names the field, what was found and what is valid."""
    if not condition:
        raise ValueError(f"{field_name}: found {found!r}, wanted {wanted}")
