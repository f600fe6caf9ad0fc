"""The clipped objective, the KL estimator and the loss, against TRL's own code and for invariance."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl import GRPOTrainer

from cogalign.grpo.losses import LossStats, clipped_objective, grpo_loss, k3_kl, token_ratio


def batch(seed: int, rows: int = 5, time: int = 7, spread: float = 0.4) -> dict[str, Tensor]:
    """Log-probabilities, advantages and a ragged mask, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logps = -normal(rows, time).abs() - 0.1
    lengths = torch.randint(1, time + 1, (rows, 1), generator=generator)
    return {
        "logps": logps.requires_grad_(),
        "old_logps": logps.detach() + spread * normal(rows, time),
        "ref_logps": logps.detach() + spread * normal(rows, time),
        "advantages": normal(rows),
        "mask": (torch.arange(time) < lengths).long(),
        "entropies": normal(rows, time).abs(),
    }


def trl_loss(data: dict[str, Tensor], epsilon: float, high: float, beta: float) -> tuple[Tensor, dict[str, float]]:
    """TRL's `_compute_loss` on our tensors: only its forward pass is replaced."""
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (data["logps"], data["entropies"], None),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=beta,
        loss_type="grpo", epsilon_low=epsilon, epsilon_high=high, use_vllm=False, aux_loss_enabled=False,
        vllm_importance_sampling_correction=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None), model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(reduce=lambda value, reduction: value, gather=lambda value: value),
        _metrics={"train": metrics},
    )  # fmt: skip
    rows = len(data["logps"])
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(data["mask"]),
        "completion_mask": data["mask"],
        "advantages": data["advantages"],
        "old_per_token_logps": data["old_logps"],
        "ref_per_token_logps": data["ref_logps"],
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in metrics.items()}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_gradient_and_statistics_equal_trls(seed: int, high: float, beta: float) -> None:
    data = batch(seed)
    loss, stats = grpo_loss(**data, epsilon=0.2, epsilon_high=high, beta=beta)
    (gradient,) = torch.autograd.grad(loss, data["logps"])
    expected, metrics = trl_loss(data, 0.2, high, beta)
    (expected_gradient,) = torch.autograd.grad(expected, data["logps"])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    means = stats.means()
    assert ("kl" in means) == (beta > 0)
    for name, value in means.items():
        assert value == pytest.approx(metrics[name], abs=1e-6), name
    assert means["clip_ratio/region_mean"] > 0


def test_loss_equals_the_formula_written_out() -> None:
    data = batch(3, rows=3, time=4)
    loss, _ = grpo_loss(**data, epsilon=0.2, epsilon_high=0.3, beta=0.1)
    total = 0.0
    for row in range(3):
        length = int(data["mask"][row].sum())
        advantage = data["advantages"][row].item()
        terms = 0.0
        for t in range(length):
            policy, old, reference = (data[name][row, t].item() for name in ("logps", "old_logps", "ref_logps"))
            ratio = 2.718281828459045 ** (policy - old)
            clipped = min(max(ratio, 0.8), 1.3)
            kl = 2.718281828459045 ** (reference - policy) - (reference - policy) - 1
            terms += min(ratio * advantage, clipped * advantage) - 0.1 * kl
        total += terms / length
    assert loss.item() == pytest.approx(-total / 3, rel=1e-12)


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(1, 7), max_size=3), order=st.randoms())
@settings(max_examples=40, deadline=None)
def test_loss_gradient_and_statistics_do_not_depend_on_the_micro_batch_split(
    seed: int, cuts: list[int], order: Any
) -> None:
    data = batch(seed, rows=8)
    whole, stats = grpo_loss(**data, beta=0.04)
    (gradient,) = torch.autograd.grad(whole, data["logps"])
    rows = list(range(8))
    order.shuffle(rows)
    bounds = sorted({0, 8, *cuts})
    parts = [rows[a:b] for a, b in pairwise(bounds)]
    results = [grpo_loss(**{k: v[part] for k, v in data.items()}, beta=0.04, normalizer=8) for part in parts]
    total = torch.stack([loss for loss, _ in results]).sum()
    summed = results[0][1]
    for _, more in results[1:]:
        summed = summed + more
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(total, data["logps"])[0], gradient, rtol=1e-12, atol=1e-12)
    assert summed.means() == pytest.approx(stats.means(), rel=1e-9)


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_masked_positions_change_nothing(rubbish: float) -> None:
    data = batch(4)
    loss, stats = grpo_loss(**data, beta=0.04)
    (gradient,) = torch.autograd.grad(loss, data["logps"])
    hidden = data["mask"] == 0
    assert hidden.any()
    spoiled = {
        name: value.detach().masked_fill(hidden, rubbish) if name.endswith(("logps", "entropies")) else value
        for name, value in data.items()
    }
    spoiled["logps"].requires_grad_()
    other, other_stats = grpo_loss(**spoiled, beta=0.04)
    assert other.item() == loss.item()
    assert torch.equal(torch.autograd.grad(other, spoiled["logps"])[0], gradient)
    assert other_stats.means() == stats.means()


def test_without_old_log_probabilities_the_ratio_is_one_and_the_gradient_the_policy_gradient() -> None:
    data = batch(5)
    loss, stats = grpo_loss(data["logps"], None, None, data["advantages"], data["mask"])
    (gradient,) = torch.autograd.grad(loss, data["logps"])
    mask = data["mask"].double()
    expected = -data["advantages"].unsqueeze(1) * mask / mask.sum(dim=1, keepdim=True) / len(mask)
    torch.testing.assert_close(gradient, expected)
    assert set(stats.means().values()) == {0.0}


def test_an_empty_completion_adds_nothing_but_counts() -> None:
    data = batch(6, rows=2)
    alone, _ = grpo_loss(**{name: value[:1] for name, value in data.items()}, beta=0.04)
    data["mask"][1] = 0
    both, stats = grpo_loss(**data, beta=0.04)
    assert both.item() == pytest.approx(alone.item() / 2)
    assert int(stats.totals[-1]) == int(data["mask"][0].sum())


def test_a_huge_ratio_gives_finite_loss_and_gradient() -> None:
    logps = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    far = torch.tensor([[-500.0, -500.0]])
    near = torch.zeros(1, 2)
    for advantage in (1.0, -1.0):
        loss, _ = grpo_loss(logps, far, near, torch.tensor([advantage]), torch.ones(1, 2), beta=0.04)
        (gradient,) = torch.autograd.grad(loss, logps)
        assert loss.isfinite() and gradient.isfinite().all()


@given(ratio=st.floats(0.01, 5), advantage=st.floats(-3, 3), low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.5))
@settings(max_examples=60, deadline=None)
def test_clipping_never_raises_the_objective(ratio: float, advantage: float, low: float, high: float) -> None:
    value = clipped_objective(torch.tensor(ratio), torch.tensor(advantage), low, high).item()
    assert value <= ratio * advantage + 1e-5
    if 1 - low < ratio < 1 + high:
        assert value == pytest.approx(ratio * advantage, abs=1e-5)


@given(policy=st.floats(-8, 0), reference=st.floats(-8, 0))
@settings(max_examples=60, deadline=None)
def test_k3_is_never_negative_and_zero_for_equal_policies(policy: float, reference: float) -> None:
    first, second = (torch.tensor(value, dtype=torch.float64) for value in (policy, reference))
    assert k3_kl(first, second) >= -1e-12
    assert k3_kl(first, first) == 0


def test_k3_estimates_the_kl_divergence() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expectation = (policy * k3_kl(policy.log(), reference.log())).sum()
    torch.testing.assert_close(expectation, (policy * (policy / reference).log()).sum())


def test_token_ratio_is_the_quotient_of_probabilities() -> None:
    old, new = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.1])
    torch.testing.assert_close(token_ratio(new.log(), old.log()), new / old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_logps": torch.zeros(5, 3)}, r"old_logps: found the shape \[5, 3\], wanted \[5, 7\]"),
        ({"advantages": torch.zeros(5, 1)}, r"advantages: found the shape \[5, 1\], wanted \[5\]"),
        ({"ref_logps": None}, r"ref_logps: found None with beta = 0\.04"),
        ({"normalizer": 0}, r"normalizer: found 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo_loss(**{**batch(0), **change}, beta=0.04)


def test_statistics_of_other_names_are_not_added() -> None:
    with pytest.raises(ValueError, match="loss statistics"):
        LossStats(("kl",), torch.zeros(2)) + LossStats(("entropy",), torch.zeros(2))
