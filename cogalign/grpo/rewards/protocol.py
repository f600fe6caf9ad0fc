"""TRL's protocol of a reward, and the text of a completion.

A reward is called as ``reward(prompts=..., completions=..., completion_ids=..., **columns)`` and returns one number, or
None where it does not apply, for each completion. Columns hold one value a completion: fields of its case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
"""What TRL hands over: text, or the chat messages that the model wrote."""
Reward = Callable[..., list[float | None]]


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or the text parts of its messages, one a line."""
    if isinstance(completion, str):
        return completion
    parts: list[str] = []
    for message in completion:
        content = message.get("content") or ""
        if isinstance(content, str):
            parts.append(content)
        else:
            parts.extend(part.get("text") or "" for part in content if part.get("type") == "text")
    return "\n".join(parts)
