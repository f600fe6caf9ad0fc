"""What checks say of a teacher's answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remark:
    """One thing about an answer."""

    check: str
    """Name of the check, e.g. `organ`."""
    text: str
    """A sentence that tells the teacher what is wrong and what is wanted."""
