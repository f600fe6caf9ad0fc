"""Importance ratios, the clip and the estimators of the KL divergence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.grpo.ratios import KlName, clipped_objective, kl_estimate, sequence_ratio, token_ratio

KINDS: tuple[KlName, ...] = ("k1", "k2", "k3")


def test_token_ratio_is_the_quotient_of_probabilities() -> None:
    old, new = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.1])
    torch.testing.assert_close(token_ratio(new.log(), old.log()), new / old)


def test_the_sequence_ratio_is_the_geometric_mean_with_the_gradient_spread_evenly() -> None:
    logps = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64).log().unsqueeze(0).requires_grad_()
    old = torch.tensor([[0.25, 0.5, 0.9]], dtype=torch.float64).log()
    ratio = sequence_ratio(logps, old, torch.tensor([[1, 1, 0]]))
    assert ratio.item() == pytest.approx((2.0 * 0.8) ** 0.5)
    (gradient,) = torch.autograd.grad(ratio.sum(), logps)
    torch.testing.assert_close(gradient, ratio.detach() / 2 * torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))
    assert sequence_ratio(logps, old, torch.zeros(1, 3)).item() == 1


@given(
    ratio=st.floats(0.01, 5),
    advantage=st.floats(-3, 3),
    low=st.floats(0.05, 0.5),
    high=st.floats(0.05, 0.5),
    over=st.none() | st.floats(0.1, 2),
)
@settings(max_examples=60, deadline=None)
def test_clipping_raises_the_objective_only_beyond_delta(
    ratio: float, advantage: float, low: float, high: float, over: float | None
) -> None:
    delta = None if over is None else 1 + high + over
    value = clipped_objective(torch.tensor(ratio), torch.tensor(advantage), low, high, delta).item()
    assert value <= min(ratio, delta or ratio) * advantage + 1e-5
    if 1 - low < ratio < 1 + high:
        assert value == pytest.approx(ratio * advantage, abs=1e-5)
    if delta is not None:
        assert abs(value) <= delta * abs(advantage) + 1e-5


@given(policy=st.floats(-8, 0), reference=st.floats(-8, 0))
@settings(max_examples=60, deadline=None)
def test_k2_and_k3_are_never_negative_and_all_are_zero_for_equal_policies(policy: float, reference: float) -> None:
    first, second = (torch.tensor(value, dtype=torch.float64) for value in (policy, reference))
    assert kl_estimate(first, second, "k2") >= 0
    assert kl_estimate(first, second, "k3") >= -1e-12
    assert [kl_estimate(first, first, kind).item() for kind in KINDS] == [0, 0, 0]


def test_k1_and_k3_estimate_the_divergence_and_k2_and_its_gradient_agree_with_it() -> None:
    logits = torch.tensor([0.4, 0.3, -0.2], dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(dim=0)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    weight = policy.exp().detach()  # tokens are drawn from the policy; the draw has no gradient
    divergence = (policy.exp() * (policy - reference)).sum()
    means = {kind: (weight * kl_estimate(policy, reference, kind)).sum() for kind in KINDS}
    torch.testing.assert_close(torch.stack([means["k1"], means["k3"]]), divergence.expand(2))
    (exact,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    for mean, factor in ((means["k1"], 0.0), (means["k2"], 1.0)):
        (gradient,) = torch.autograd.grad(mean, logits, retain_graph=True)
        torch.testing.assert_close(gradient, factor * exact)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grpo\.kl: found 'k4', wanted 'k1', 'k2' or 'k3'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]
