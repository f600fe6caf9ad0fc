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


def reward_arguments(
    completions: Sequence[Completion],
    columns: Mapping[str, Sequence[Any]],
    prompts: Sequence[Any] | None,
    completion_ids: Sequence[Sequence[int]] | None,
) -> dict[str, Sequence[Any]]:
    """The keyword arguments of a reward for N completions.

    Raises:
        ValueError: a column has not N values.
    """
    n = len(completions)
    arguments: dict[str, Sequence[Any]] = {
        "prompts": [""] * n if prompts is None else prompts,
        "completions": completions,
        "completion_ids": [[]] * n if completion_ids is None else completion_ids,
        **columns,
    }
    for name, values in arguments.items():
        if len(values) != n:
            raise ValueError(f"reward column {name!r}: found {len(values)} values, wanted {n}, one a completion")
    return arguments
