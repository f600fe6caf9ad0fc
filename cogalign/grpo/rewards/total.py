"""The weighted sum of rewards. The only rewards module that needs torch, and only when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from cogalign.grpo.rewards.build import REWARDS
from cogalign.grpo.rewards.protocol import Completion, Reward, reward_arguments
from cogalign.recipe import RewardWeights

if TYPE_CHECKING:
    from torch import Tensor


def total_rewards(single: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Weighted sum of single rewards, as in TRL: what is missing is left out of the sum.

    Args:
        single: Rewards [N, R]; NaN for one that is missing.
        weights: R weights.

    Returns:
        Totals [N]; NaN where all of a completion's rewards are missing (`group_advantages` leaves it out).
    """
    import torch

    total = (single * torch.as_tensor(weights, dtype=single.dtype, device=single.device)).nansum(dim=1)
    return total.masked_fill(single.isnan().all(dim=1), torch.nan)


def reward_table(values: Mapping[str, Sequence[float | None]]) -> Tensor:
    """Rewards by name, N values each, as a float32 tensor [N, R]; NaN for None."""
    import torch

    columns = [[torch.nan if value is None else value for value in column] for column in values.values()]
    return torch.tensor(columns, dtype=torch.float32).T.contiguous()


def score(
    completions: Sequence[Completion],
    columns: Mapping[str, Sequence[Any]],
    weights: RewardWeights | Mapping[str, float],
    *,
    prompts: Sequence[Any] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    rewards: Mapping[str, Reward] = REWARDS,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the rewards of each completion, and each reward by itself, computed in this process.

    As in TRL, a reward that does not apply (None) is left out of the sum; a completion to which none applies has a NaN
    total, which `group_advantages` leaves out of its group.

    Args:
        completions: N completions.
        columns: What is known of each completion's case: N values a column.
        weights: Weight of each reward by name; their order is that of the second result. Of `RewardWeights` those
            that are not 0.
        prompts: N prompts, for rewards that read them.
        completion_ids: N lists of token ids, for rewards that read them.
        rewards: The functions by name.

    Returns:
        Totals [N] and single rewards [N, R], float32; NaN for None.

    Raises:
        ValueError: a weight names no reward, or a column or a reward has not N values.
    """
    if isinstance(weights, RewardWeights):
        shares = {name: weight for name, weight in asdict(weights).items() if weight != 0}
    else:
        shares = dict(weights)
    n = len(completions)
    for name in shares:
        if name not in rewards:
            nearest = (get_close_matches(name, rewards, 1, 0.0) or ["none"])[0]
            raise ValueError(f"grpo.reward_weights: unknown reward {name!r}, the nearest is {nearest!r}")
    arguments = reward_arguments(completions, columns, prompts, completion_ids)
    found: dict[str, Sequence[float | None]] = {}
    for name in shares:
        found[name] = rewards[name](**arguments)
        if len(found[name]) != n:
            raise ValueError(f"reward {name!r}: returned {len(found[name])} values, wanted {n}, one a completion")
    single = reward_table(found)
    return total_rewards(single, list(shares.values())), single
