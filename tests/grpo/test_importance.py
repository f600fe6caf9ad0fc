"""Weights for tokens of another engine; that they and their metrics are TRL's is tested in `test_losses_vs_trl.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.grpo.importance import ImportanceStats, importance_weights

NAN = float("nan")
POLICY = torch.tensor([[0.5, 0.5, 0.1, 0.9]], dtype=torch.float64).log()
SAMPLER = torch.tensor([[0.25, 0.05, 0.2, 0.9]], dtype=torch.float64).log()
MASK = torch.ones(1, 4)


@pytest.mark.parametrize(
    ("mode", "expected"), [("truncate", [2, 3, 0.5, 1]), ("mask", [2, 0, 0.5, 1]), ("none", [1, 1, 1, 1])]
)
def test_weights_are_quotients_up_to_the_cap(mode: Any, expected: list[float]) -> None:
    weights, stats = importance_weights(POLICY, SAMPLER, MASK, mode, cap=3.0)
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float64))
    metrics = stats.metrics()
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(10))
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(math.log(2 * 10 * 2) / 4)
    assert metrics["sampling/importance_sampling_ratio/min"] == pytest.approx(min(expected))
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(sum(expected) / 4)
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(max(expected))


def test_weights_have_no_gradient_and_the_type_of_the_policys() -> None:
    policy = POLICY.float().requires_grad_()
    weights, stats = importance_weights(policy, SAMPLER, MASK, "truncate", 3.0)
    assert not weights.requires_grad and not stats.sums.requires_grad
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("mode", ["truncate", "mask", "none"])
@pytest.mark.parametrize("rubbish", [NAN, float("inf"), -float("inf"), 1e30])
def test_masked_positions_change_nothing_and_weigh_one(mode: Any, rubbish: float) -> None:
    mask = torch.tensor([[1, 1, 0, 0]])
    expected, stats = importance_weights(POLICY[:, :2], SAMPLER[:, :2], mask[:, :2], mode, 3.0)
    for spoiled in ("policy", "sampler"):
        policy = POLICY.masked_fill(mask == 0, rubbish) if spoiled == "policy" else POLICY
        sampler = SAMPLER.masked_fill(mask == 0, rubbish) if spoiled == "sampler" else SAMPLER
        weights, other = importance_weights(policy, sampler, mask, mode, 3.0)
        assert torch.equal(weights[:, :2], expected)
        assert weights[:, 2:].eq(1).all()
        assert other.metrics() == stats.metrics()


def test_a_token_whose_probability_the_sampler_did_not_report_weighs_one() -> None:
    sampler = SAMPLER.clone()
    sampler[0, 1] = NAN
    weights, stats = importance_weights(POLICY, sampler, MASK, "mask", 3.0)
    assert weights[0].tolist() == pytest.approx([2, 1, 0.5, 1])
    assert stats.metrics()["sampling/sampling_logp_difference/mean"] == pytest.approx(2 * math.log(2) / 3)


@pytest.mark.parametrize(("mode", "expected"), [("truncate", 3.0), ("mask", 0.0)])
def test_an_impossible_token_gives_no_infinity(mode: Any, expected: float) -> None:
    weights, _ = importance_weights(torch.full((1, 1), -1.0), torch.full((1, 1), -5e3), torch.ones(1, 1), mode, 3.0)
    assert weights.item() == expected


@given(seed=st.integers(0, 10_000), cut=st.integers(0, 6), mode=st.sampled_from(["truncate", "mask", "none"]))
@settings(max_examples=30, deadline=None)
def test_statistics_do_not_depend_on_the_micro_batch_split(seed: int, cut: int, mode: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy, sampler = -torch.rand(2, 6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=generator) > 0.4
    weights, whole = importance_weights(policy, sampler, mask, mode, 1.3)
    parts = [importance_weights(policy[r], sampler[r], mask[r], mode, 1.3) for r in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat([part for part, _ in parts]), weights)
    assert (parts[0][1] + parts[1][1]).metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    assert weights.min() >= 0 and weights.max() <= 1.3


def test_no_token_gives_zeros() -> None:
    _, stats = importance_weights(POLICY, SAMPLER, torch.zeros(1, 4), "truncate", 3.0)
    assert set(stats.metrics().values()) == {0.0}
    _, known = importance_weights(POLICY, SAMPLER, MASK, "truncate", 3.0)
    assert (known + stats).metrics() == known.metrics()
    assert isinstance(known + stats, ImportanceStats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler_logps": torch.zeros(1, 3)}, r"sampler_logps: found the shape \[1, 3\], wanted \[1, 4\]"),
        ({"mask": torch.zeros(4)}, r"mask: found the shape \[4\], wanted \[1, 4\]"),
        ({"mode": "clip"}, r"grpo\.importance: found 'clip', wanted 'truncate', 'mask' or 'none'"),
        ({"cap": 0.5}, r"grpo\.importance_cap: found 0\.5, wanted at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    fits = {"policy_logps": POLICY, "sampler_logps": SAMPLER, "mask": MASK, "mode": "truncate", "cap": 2.0}
    with pytest.raises(ValueError, match=message):
        importance_weights(**{**fits, **change})
