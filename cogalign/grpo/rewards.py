"""The paper's three rewards, as functions in TRL's protocol.

A reward is called as ``reward(prompts=..., completions=..., completion_ids=..., **columns)`` and returns one number, or
None where it does not apply, for each completion. Columns hold one value a completion; ours read `findings` and
`keywords`. These functions run in TRL's `GRPOTrainer`, and rewards written for TRL run here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from cogalign.cognition.keywords import count_found
from cogalign.cognition.report import HEADINGS, parse
from cogalign.data.case import Keywords
from cogalign.recipe import RewardWeights

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


def format_reward(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """1 when all three headings occur in the completion, else 0 (CogAlign eq. 12)."""
    texts = map(completion_text, completions)
    return [float(all(heading in text for heading in HEADINGS.values())) for text in texts]


def cognition_reward(
    completions: Sequence[Completion], keywords: Sequence[Mapping[str, Sequence[str] | None] | None], **_: Any
) -> list[float | None]:
    """Share of the case's keywords, nine in the paper, that the completion contains (CogAlign eq. 13).

    Args:
        completions: What the model wrote.
        keywords: The case's keywords by section; a case without any is not judged (None).
    """
    return [_share_found(completion_text(c), k) for c, k in zip(completions, keywords, strict=True)]


def diagnosis_reward(
    completions: Sequence[Completion], findings: Sequence[Iterable[str] | None], **_: Any
) -> list[float | None]:
    """1 when the set of diagnoses read from the completion equals the case's, else 0 (CogAlign eq. 14).

    A diagnosis that the taxonomy does not know makes the sets differ.

    Args:
        completions: What the model wrote.
        findings: The case's findings (ids of the taxonomy); a case without any is not judged (None).
    """
    return [_same_diagnosis(completion_text(c), f) for c, f in zip(completions, findings, strict=True)]


REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "cognition": cognition_reward,
    "diagnosis": diagnosis_reward,
}
"""Rewards by the name that recipes and metrics (`rewards/<name>/mean`) use."""


def score(
    completions: Sequence[Completion],
    columns: Mapping[str, Sequence[Any]],
    weights: RewardWeights | Mapping[str, float],
    *,
    prompts: Sequence[Any] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    rewards: Mapping[str, Reward] = REWARDS,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the rewards of each completion, and each reward by itself.

    As in TRL, a reward that does not apply (None) is left out of the sum; a completion to which none applies has a NaN
    total, which `group_advantages` leaves out of its group.

    Args:
        completions: N completions.
        columns: What is known of each completion's case: N values a column.
        weights: Weight of each reward by name; their order is that of the second result.
        prompts: N prompts, for rewards that read them.
        completion_ids: N lists of token ids, for rewards that read them.
        rewards: The functions by name.

    Returns:
        Totals [N] and single rewards [N, R], float32; NaN for None.

    Raises:
        ValueError: a weight names no reward, or a column or a reward has not N values.
    """
    shares = asdict(weights) if isinstance(weights, RewardWeights) else dict(weights)
    n = len(completions)
    for name in shares:
        if name not in rewards:
            nearest = (get_close_matches(name, rewards, 1, 0.0) or ["none"])[0]
            raise ValueError(f"grpo.reward_weights: unknown reward {name!r}, the nearest is {nearest!r}")
    for column, values in columns.items():
        if len(values) != n:
            raise ValueError(f"reward column {column!r}: found {len(values)} values, wanted {n}, one a completion")
    given = {
        "prompts": [""] * n if prompts is None else prompts,
        "completion_ids": [[]] * n if completion_ids is None else completion_ids,
    }
    single = torch.full((n, len(shares)), torch.nan)
    for index, name in enumerate(shares):
        values = rewards[name](completions=completions, **given, **columns)
        if len(values) != n:
            raise ValueError(f"reward {name!r}: returned {len(values)} values, wanted {n}, one a completion")
        single[:, index] = torch.tensor([torch.nan if value is None else value for value in values])
    total = (single * torch.tensor(list(shares.values()))).nansum(dim=1)
    return total.masked_fill(single.isnan().all(dim=1), torch.nan), single


def _share_found(text: str, keywords: Mapping[str, Sequence[str] | None] | None) -> float | None:
    """Share of the keywords in the text; None without keywords (Arrow tables fill missing sections with None)."""
    known: Keywords = {section: list(words) for section, words in (keywords or {}).items() if words}
    total = sum(map(len, known.values()))
    return count_found(text, known) / total if total else None


def _same_diagnosis(text: str, findings: Iterable[str] | None) -> float | None:
    """Whether the parsed set of findings equals the given one; None without findings."""
    gold = set(findings or ())
    if not gold:
        return None
    return float(parse(text).agrees_with(gold))
