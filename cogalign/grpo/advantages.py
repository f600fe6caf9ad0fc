"""Group relative advantages: how much better a completion is than the others of its prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

ScaleName = Literal["group", "batch", "none"]
SumOverRanks = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks, e.g. an all-reduce; every rank must call it equally often."""

EPS = 1e-4
"""Added to standard deviations, as in TRL."""


def group_advantages(
    rewards: Tensor,
    scale: ScaleName = "group",
    eps: float = EPS,
    sum_over_ranks: SumOverRanks | None = None,
) -> Tensor:
    """Advantages of completions within their groups, A_i = (r_i - mean(r)) / (std(r) + eps).

    CogAlign, section "counterfactual-driven GRPO"; the standard deviation is the unbiased one (n - 1), as in TRL.
    A NaN or infinite reward is a completion that no reward function could judge: it does not enter any mean or
    standard deviation and its advantage is 0. Equal rewards give exactly 0.

    Args:
        rewards: Total rewards, [prompts, generations].
        scale: What is divided by: `group`, the standard deviation of the group; `batch`, that of all rewards
            (arXiv 2508.08221); `none`, nothing (Dr. GRPO, arXiv 2503.20783).
        eps: Added to the standard deviation.
        sum_over_ranks: For `batch` on several ranks, whose batch is the rewards of all; None is one rank.

    Returns:
        Advantages, [prompts, generations], in the type of `rewards`.

    Raises:
        ValueError: `rewards` does not have two dimensions or `scale` is unknown.
    """
    exact = _exact(rewards, 2)
    advantages = _within_groups(exact, scale, eps, sum_over_ranks)
    return advantages.nan_to_num(nan=0.0).to(rewards.dtype)


def gdpo_advantages(
    single: Tensor,
    weights: Tensor,
    scale: ScaleName = "group",
    eps: float = EPS,
    sum_over_ranks: SumOverRanks | None = None,
) -> Tensor:
    """Advantages of several rewards of which each is normalised by itself (GDPO, arXiv 2601.05242).

    A_k = (r_k - mean(r_k)) / (std(r_k) + eps) within the group for each reward k, S = sum_k w_k A_k, and
    A = (S - mean(S)) / (std(S) + eps) over the batch. Rewards of different spread so count by their weight alone, and
    groups in which the sums agree while the rewards do not still teach. With `scale="group"` this is TRL's
    `multi_objective_aggregation="normalize_then_sum"`.

    Args:
        single: Rewards, [prompts, generations, rewards]. NaN is a reward that could not judge: it adds nothing to S and
            enters no mean. A completion without any reward has the advantage 0.
        weights: Weight of each reward, [rewards].
        scale: What each reward's difference from its group's mean is divided by, as in `group_advantages`.
        eps: Added to the standard deviations.
        sum_over_ranks: On several ranks, for what is taken over the batch; None is one rank.

    Returns:
        Advantages, [prompts, generations], in the type of `single`.

    Raises:
        ValueError: shapes do not fit or `scale` is unknown.
    """
    exact = _exact(single, 3)
    if weights.shape != exact.shape[2:]:
        raise ValueError(
            f"weights: found the shape {list(weights.shape)}, wanted {list(exact.shape[2:])}, one a reward"
        )
    normalised = torch.stack([_within_groups(one, scale, eps, sum_over_ranks) for one in exact.unbind(2)], dim=2)
    summed = (normalised * weights.to(exact)).nansum(dim=2).masked_fill(exact.isnan().all(dim=2), torch.nan)
    mean, spread = _batch_moments(summed, sum_over_ranks)
    return ((summed - mean) / (spread + eps)).nan_to_num(nan=0.0).to(single.dtype)


def zero_spread(rewards: Tensor) -> Tensor:
    """Which groups have rewards that do not differ, so that they teach nothing.

    Args:
        rewards: Total rewards, [prompts, generations], or, for `gdpo_advantages`, single ones that have a weight,
            [prompts, generations, rewards], none of which may differ then; NaN as in `group_advantages`.

    Returns:
        Booleans, [prompts].

    Raises:
        ValueError: `rewards` does not have two or three dimensions.
    """
    exact = _exact(rewards, 3 if rewards.dim() == 3 else 2)
    # a group with one judged completion has no spread either
    spread = _spread(exact, exact.nanmean(dim=1, keepdim=True)).nan_to_num(nan=0.0)
    return torch.isclose(spread, torch.zeros_like(spread)).flatten(1).all(dim=1)


def zero_spread_share(rewards: Tensor) -> float:
    """Share of the groups of `zero_spread` (TRL: `frac_reward_zero_std`); arguments and errors as there."""
    return zero_spread(rewards).double().mean().item()


def _exact(rewards: Tensor, dimensions: int) -> Tensor:
    """The rewards in float64, where the mean of equal float32 values is that value, with NaN for what is not finite."""
    if rewards.dim() != dimensions or rewards.numel() == 0:
        wanted = ["prompts", "generations", "rewards"][:dimensions]
        raise ValueError(f"rewards: found the shape {list(rewards.shape)}, wanted [{', '.join(wanted)}], not empty")
    return rewards.double().masked_fill(~rewards.isfinite(), torch.nan)


def _within_groups(exact: Tensor, scale: ScaleName, eps: float, sum_over_ranks: SumOverRanks | None) -> Tensor:
    """Difference from the group's mean by what `scale` says, [P, G]; NaN where it is not known."""
    mean = exact.nanmean(dim=1, keepdim=True)
    if scale == "group":
        return (exact - mean) / (_spread(exact, mean) + eps)
    if scale == "batch":
        return (exact - mean) / (_batch_moments(exact, sum_over_ranks)[1] + eps)
    if scale == "none":
        return exact - mean
    raise ValueError(f"grpo.scale_rewards: found {scale!r}, wanted 'group', 'batch' or 'none'")


def _spread(exact: Tensor, mean: Tensor) -> Tensor:
    """Unbiased standard deviation over dimension 1, which is kept; NaN where less than two rewards are known."""
    known = (~exact.isnan()).sum(dim=1, keepdim=True)
    squares = (exact - mean).square().nansum(dim=1, keepdim=True)
    return _root(squares, known)


def _batch_moments(exact: Tensor, sum_over_ranks: SumOverRanks | None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of all known values on all ranks, two scalars."""
    add = sum_over_ranks or (lambda values: values)
    total, known = add(torch.stack([exact.nansum(), (~exact.isnan()).sum().double()]))
    mean = total / known
    # From the mean and not from the sum of squares, so that equal rewards have no spread at all.
    squares = add((exact - mean).square().nansum().reshape(1))[0]
    return mean, _root(squares, known)


def _root(squares: Tensor, known: Tensor) -> Tensor:
    """Standard deviation from the sum of squares about the mean."""
    return torch.where(known > 1, squares / (known - 1).clamp(min=1), torch.nan).sqrt()
