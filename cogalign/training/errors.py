"""What an error says of itself."""

from __future__ import annotations


def message_of(error: BaseException) -> str:
    """Its message; its type's name where it has none."""
    return str(error).strip() or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of its message."""
    return message_of(error).splitlines()[0]
