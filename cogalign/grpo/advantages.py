"""Group relative advantages: how much better a completion is than the others of its prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, scale: Literal["group", "none"] = "group", eps: float = 1e-4) -> Tensor:
    """Advantages of completions within their groups, A_i = (r_i - mean(r)) / (std(r) + eps).

    CogAlign, section "counterfactual-driven GRPO"; the standard deviation is the unbiased one (n - 1), as in TRL.
    A NaN reward is a completion that no reward function could judge: it does not enter its group's mean or standard
    deviation and its advantage is 0. Equal rewards give exactly 0.

    Args:
        rewards: Total rewards, [prompts, generations].
        scale: `group` divides by the group's standard deviation, `none` only subtracts the mean.
        eps: Added to the standard deviation.

    Returns:
        Advantages, [prompts, generations], in the type of `rewards`.

    Raises:
        ValueError: `rewards` does not have two dimensions or `scale` is unknown.
    """
    if scale not in ("group", "none"):
        raise ValueError(f"grpo.scale_rewards: found {scale!r}, wanted 'group' or 'none'")
    exact, mean = _centre(rewards)
    advantages = exact - mean
    if scale == "group":
        advantages = advantages / (_spread(exact, mean) + eps)
    return advantages.nan_to_num(nan=0.0).to(rewards.dtype)


def zero_spread_share(rewards: Tensor) -> float:
    """Share of groups whose rewards do not differ, which therefore teach nothing (TRL: `frac_reward_zero_std`).

    Args:
        rewards: Total rewards, [prompts, generations]; NaN as in `group_advantages`.

    Raises:
        ValueError: `rewards` does not have two dimensions.
    """
    exact, mean = _centre(rewards)
    spread = _spread(exact, mean).nan_to_num(nan=0.0)  # a group with one judged completion has no spread either
    return torch.isclose(spread, torch.zeros_like(spread)).double().mean().item()


def _centre(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """The rewards in float64, where the mean of equal float32 values is that value, and their group means [P, 1]."""
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards: found the shape {list(rewards.shape)}, wanted [prompts, generations], not empty")
    exact = rewards.double()
    return exact, exact.nanmean(dim=1, keepdim=True)


def _spread(exact: Tensor, mean: Tensor) -> Tensor:
    """Unbiased standard deviation of each group, [P, 1]; NaN where less than two rewards are known."""
    known = (~exact.isnan()).sum(dim=1, keepdim=True)
    squares = (exact - mean).square().nansum(dim=1, keepdim=True)
    return torch.where(known > 1, squares / (known - 1).clamp(min=1), torch.nan).sqrt()
