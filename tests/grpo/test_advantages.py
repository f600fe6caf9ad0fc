"""Group relative advantages; that they are TRL's is tested in `test_losses_vs_trl.py`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cogalign.grpo.advantages import gdpo_advantages, group_advantages, zero_spread, zero_spread_share

NAN = float("nan")
reward_values = st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 2.5, 4.0])
groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(reward_values, min_size=size, max_size=size), min_size=1, max_size=5)
)
every_scale = pytest.mark.parametrize("scale", ["group", "batch", "none"])


def on_ranks(parts: list[Tensor], compute: Callable[..., Tensor]) -> Tensor:
    """Run `compute(part, sum_over_ranks=...)` for each part at once, with a real sum over the threads."""
    barrier = Barrier(len(parts), timeout=20)
    shared: list[Tensor] = [torch.empty(0)] * len(parts)

    def one(rank: int) -> Tensor:
        def add(values: Tensor) -> Tensor:
            shared[rank] = values
            barrier.wait()
            total = torch.stack(shared).sum(dim=0)
            barrier.wait()
            return total

        return compute(parts[rank], sum_over_ranks=add)

    with ThreadPoolExecutor(len(parts)) as pool:
        return torch.cat(list(pool.map(one, range(len(parts)))))


@every_scale
def test_unjudged_completions_are_left_out(scale: Any) -> None:
    known = torch.tensor([[1.0, 3.0, 5.0]], dtype=torch.float64)
    for missing in (NAN, float("inf"), -float("inf")):
        rewards = torch.tensor([[1.0, missing, 3.0, 5.0], [missing] * 4], dtype=torch.float64)
        advantages = group_advantages(rewards, scale)
        torch.testing.assert_close(advantages[:1, [0, 2, 3]], group_advantages(known, scale))
        assert advantages[0, 1] == 0 and advantages[1].eq(0).all()


def test_the_standard_deviation_is_unbiased() -> None:
    rewards = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, 1.0]], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(group_advantages(rewards, eps=0.0), expected)
    torch.testing.assert_close(group_advantages(rewards, "batch", eps=0.0), expected)


def test_scaling_by_the_batch_divides_all_groups_by_one_number() -> None:
    rewards = torch.tensor([[0.0, 2.0], [4.0, 4.5]], dtype=torch.float64)
    centred = torch.tensor([[-1.0, 1.0], [-0.25, 0.25]], dtype=torch.float64)
    assert torch.equal(group_advantages(rewards, "none"), centred)
    torch.testing.assert_close(group_advantages(rewards, "batch"), centred / (rewards.std() + 1e-4))


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


@every_scale
@given(rows=groups, order=st.randoms())
@settings(max_examples=20, deadline=None)
def test_advantages_follow_their_completions_in_any_order(scale: Any, rows: list[list[float]], order: Any) -> None:
    rewards = torch.tensor(rows, dtype=torch.float64)
    shape = [list(range(size)) for size in rewards.shape]
    for indices in shape:
        order.shuffle(indices)
    prompts, completions = shape
    single = torch.stack([rewards, rewards.square()], dim=2)
    weights = torch.tensor([1.0, 2.0])
    expected = group_advantages(rewards, scale), gdpo_advantages(single, weights, scale)
    found = (
        group_advantages(rewards[prompts][:, completions], scale),
        gdpo_advantages(single[prompts][:, completions], weights, scale),
    )
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one[prompts][:, completions], other, atol=1e-9, rtol=1e-9)


@every_scale
@given(seed=st.integers(0, 1000), ranks=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_advantages_do_not_depend_on_the_number_of_ranks(scale: Any, seed: int, ranks: int) -> None:
    single = torch.rand(6, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    single[0, 1] = NAN
    single[3, :, 0] = NAN
    weights = torch.tensor([1.0, 0.5])
    parts = list(single.chunk(ranks))
    spread = on_ranks(parts, lambda part, **more: gdpo_advantages(part, weights, scale, **more))
    torch.testing.assert_close(spread, gdpo_advantages(single, weights, scale))
    summed = single.sum(dim=2)
    spread = on_ranks(list(summed.chunk(ranks)), lambda part, **more: group_advantages(part, scale, **more))
    torch.testing.assert_close(spread, group_advantages(summed, scale))


@every_scale
@given(value=st.floats(-4, 4, width=32), size=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_equal_rewards_give_exactly_zero(scale: Any, value: float, size: int) -> None:
    rewards = torch.full((3, size), value)
    assert group_advantages(rewards, scale).eq(0).all()
    assert gdpo_advantages(rewards.unsqueeze(2).repeat(1, 1, 2), torch.ones(2), scale).eq(0).all()
    assert zero_spread_share(rewards) == 1.0


def test_gdpo_tells_apart_what_the_sum_does_not() -> None:
    """Two rewards which trade against one another; the rarer success counts for more (the paper's motive)."""
    single = torch.tensor(
        [[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]
    )
    weights = torch.tensor([1.0, 2.0])
    assert group_advantages(single.sum(dim=2))[0].eq(0).all()
    advantages = gdpo_advantages(single, weights)
    assert advantages[0, 1] > 0 > advantages[0, 0]
    assert zero_spread(single.sum(dim=2)).tolist() == [True, False]
    assert zero_spread(single).tolist() == [False, False]


def test_gdpo_is_the_formula_written_out() -> None:
    single = torch.tensor([[[0.0, 3.0], [2.0, 3.0]], [[1.0, 0.0], [1.0, 4.0]]], dtype=torch.float64)
    half = 1 / (2**0.5 + 1e-4)  # difference 1 from the mean of 0 and 2, whose standard deviation is 2 ** 0.5
    double = 2 / (8**0.5 + 1e-4)
    summed = torch.tensor([[-half, half], [-0.5 * double, 0.5 * double]], dtype=torch.float64)
    expected = summed / (summed.std() + 1e-4)
    torch.testing.assert_close(gdpo_advantages(single, torch.tensor([1.0, 0.5])), expected)


@given(scale=st.sampled_from(["group", "batch"]), factor=st.floats(2, 50))
@settings(max_examples=20, deadline=None)
def test_in_gdpo_the_range_of_a_reward_does_not_matter(scale: Any, factor: float) -> None:
    single = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wider = single * torch.tensor([1.0, factor])
    weights = torch.ones(2)
    expected = gdpo_advantages(single, weights, scale, eps=0.0)
    torch.testing.assert_close(gdpo_advantages(wider, weights, scale, eps=0.0), expected)


def test_in_gdpo_a_reward_that_could_not_judge_adds_nothing() -> None:
    single = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    silent = torch.cat([single, torch.full((3, 4, 1), NAN)], dim=2)
    weights = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(gdpo_advantages(silent, weights), gdpo_advantages(single, weights[:2]))
    single[1, 2] = NAN
    advantages = gdpo_advantages(single, weights[:2])
    assert advantages[1, 2] == 0 and advantages.isfinite().all() and advantages.count_nonzero() == 11


def test_groups_without_spread_are_found_and_their_share_counted() -> None:
    rewards = torch.tensor([[1.0, 1.0], [1.0, 2.0], [NAN, 1.0], [0.0, 4.0]])
    assert zero_spread(rewards).tolist() == [True, False, True, False]
    assert zero_spread_share(rewards) == 0.5


def test_wrong_shape_and_scale_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found the shape \[4\], wanted \[prompts, generations\]"):
        group_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match=r"found the shape \[4, 2\], wanted \[prompts, generations, rewards\]"):
        gdpo_advantages(torch.zeros(4, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"weights: found the shape \[3\], wanted \[2\]"):
        gdpo_advantages(torch.zeros(1, 4, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"grpo\.scale_rewards: found 'std'"):
        group_advantages(torch.zeros(2, 2), "std")  # type: ignore[arg-type]
