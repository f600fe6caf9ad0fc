"""The reward of both sides, written for TRL; reward workers import this file, so it imports nothing heavy."""

from __future__ import annotations

from typing import Any


def even_token_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of even token ids in a completion."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
