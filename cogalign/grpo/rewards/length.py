"""The reward `length`: no longer than it needs to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cogalign.grpo.rewards.protocol import Completion, completion_text


def length_reward(
    completion_ids: Sequence[Sequence[int]],
    completions: Sequence[Completion] | None = None,
    length_target: int = 256,
    max_completion_length: int = 512,
    **_: Any,
) -> list[float | None]:
    """1 up to `length_target` tokens, then falling in a line to 0 at `max_completion_length`.

    An answer without text earns nothing, so that silence is not the shortest way to the full reward.

    Args:
        completion_ids: Token ids of each completion.
        completions: What the model wrote.
        length_target: Tokens up to which the reward is 1.
        max_completion_length: Tokens from which it is 0; if it is not above the target, all up to the target is 1.
    """
    texts = ["?"] * len(completion_ids) if completions is None else list(map(completion_text, completions))
    room = max_completion_length - length_target
    rewards: list[float | None] = []
    for ids, text in zip(completion_ids, texts, strict=True):
        over = len(ids) - length_target
        if not ids or not text.strip():
            rewards.append(0.0)
        elif over <= 0:
            rewards.append(1.0)
        else:
            rewards.append(max(0.0, 1 - over / room) if room > 0 else 0.0)
    return rewards
