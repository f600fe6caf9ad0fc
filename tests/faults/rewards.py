"""Rewards with faults, as a package that is installed might bring them: a case that they cannot judge undoes them."""

import time
from typing import Any

CASE = "phantom-a00004"


def raising_reward(completions: list[str], id: list[str], **_: Any) -> list[float]:
    import sys; print("IDS", id, file=sys.stderr, flush=True)
    """Raises."""
    if CASE in id:
        raise ValueError("no keyword in this case")
    return [float(len(text)) for text in completions]


def hanging_reward(completions: list[str], id: list[str], **_: Any) -> list[float]:
    """Does not come back."""
    while CASE in id:
        time.sleep(1)
    return [float(len(text)) for text in completions]
