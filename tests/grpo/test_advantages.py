"""Group relative advantages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from cogalign.grpo.advantages import group_advantages, zero_spread_share

reward_values = st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 2.5, 4.0])
groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(reward_values, min_size=size, max_size=size), min_size=1, max_size=5)
)


def trl_advantages(rewards: torch.Tensor, scale: str) -> torch.Tensor:
    """What TRL 1.16 computes for sum_then_normalize, from its own standard deviation."""
    deviation = nanstd(rewards.clone(), dim=1).unsqueeze(1)
    advantages = rewards - rewards.nanmean(dim=1, keepdim=True)
    if scale == "group":
        advantages = advantages / (deviation + 1e-4)
    return advantages.nan_to_num(nan=0.0)


@pytest.mark.parametrize("scale", ["group", "none"])
@given(rows=groups)
@settings(max_examples=40, deadline=None)
def test_advantages_equal_trls(scale: str, rows: list[list[float]]) -> None:
    rewards = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, scale), trl_advantages(rewards, scale))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_unjudged_completions_are_left_out_as_in_trl(scale: str) -> None:
    nan = float("nan")
    rewards = torch.tensor([[1.0, nan, 3.0, 5.0], [nan, nan, nan, nan], [2.0, 0.0, nan, nan]], dtype=torch.float64)
    advantages = group_advantages(rewards, scale)  # type: ignore[arg-type]
    torch.testing.assert_close(advantages, trl_advantages(rewards, scale))
    assert advantages[rewards.isnan()].eq(0).all()
    assert advantages[0, 0] < 0 < advantages[0, 3]


def test_the_standard_deviation_is_unbiased() -> None:
    advantages = group_advantages(torch.tensor([[0.0, 2.0]], dtype=torch.float64), eps=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, 1.0]], dtype=torch.float64) / 2**0.5)


@given(rows=groups, shift=st.floats(-10, 10), factor=st.floats(0.5, 4))
@settings(max_examples=40, deadline=None)
def test_advantages_do_not_depend_on_offset_and_scale_of_the_rewards(
    rows: list[list[float]], shift: float, factor: float
) -> None:
    rewards = torch.tensor(rows, dtype=torch.float64)
    expected = group_advantages(rewards, eps=1e-12)
    torch.testing.assert_close(
        group_advantages(rewards * factor + shift, eps=1e-12 * factor), expected, atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(expected.sum(dim=1), torch.zeros(len(rows), dtype=torch.float64), atol=1e-3, rtol=0)


@given(value=st.floats(-4, 4, width=32), size=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_equal_rewards_give_exactly_zero(value: float, size: int) -> None:
    rewards = torch.full((3, size), value)
    assert group_advantages(rewards).eq(0).all()
    assert zero_spread_share(rewards) == 1.0


def test_zero_spread_share_counts_groups() -> None:
    nan = float("nan")
    rewards = torch.tensor([[1.0, 1.0], [1.0, 2.0], [nan, 1.0], [0.0, 4.0]])
    assert zero_spread_share(rewards) == 0.5


def test_wrong_shape_and_scale_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found the shape \[4\]"):
        group_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match=r"grpo\.scale_rewards: found 'batch'"):
        group_advantages(torch.zeros(2, 2), "batch")  # type: ignore[arg-type]
