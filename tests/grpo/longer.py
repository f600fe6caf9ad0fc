"""A reward in TRL's protocol that random weights earn: long texts with few spaces are better."""

from typing import Any


def longer_reward(completions: list[str], **_: Any) -> list[float]:
    """Differs from completion to completion."""
    return [len(text) / 20 - text.count(" ") / 4 for text in completions]


def even_reward(completions: list[str], **_: Any) -> list[float]:
    """1 for a text of even length: two completions often agree."""
    return [float(len(text) % 2 == 0) for text in completions]
