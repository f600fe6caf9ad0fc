"""Rewards with faults, as a package that is installed might bring them: one case each that they cannot judge."""

import time
from typing import Any

RAISES, HANGS = "phantom-a00003", "phantom-a00010-control"
"""Drawn for the second and for the first generation, there as the last prompt: those before it are judged in time."""


def raising_reward(completions: list[str], id: list[str], **_: Any) -> list[float]:
    """Raises for a case."""
    if RAISES in id:
        raise ValueError("no keyword in this case")
    return [float(len(text)) for text in completions]


def hanging_reward(completions: list[str], id: list[str], **_: Any) -> list[float]:
    """Does not come back from a case."""
    while HANGS in id:
        time.sleep(1)
    return [float(len(text)) for text in completions]
