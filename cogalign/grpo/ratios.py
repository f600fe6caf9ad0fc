"""Importance ratios, the clip and the estimators of the KL divergence, as pure functions of log-probabilities."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp() is not taken of more: the ratio is far outside of any clip range then, and infinity would give NaN gradients."""

KlName = Literal["k1", "k2", "k3"]


def token_ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Importance ratio rho = pi_theta / pi_old of each token, from log-probabilities; same shape.

    It is capped at exp(20), beyond any sensible clip range, so that it never becomes infinite.
    """
    return (logps - old_logps).clamp(max=MAX_LOG_RATIO).exp()


def sequence_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Importance ratio of whole completions, normalised by their length (GSPO, arXiv 2507.18071, eq. 7).

    s_i = exp(mean over the tokens of completion i of log pi_theta - log pi_old): the geometric mean of the tokens'
    ratios. The gradient goes through all of them. It is capped like `token_ratio`.

    Args:
        logps: Log-probabilities, finite also where they are masked, [completions, time].
        old_logps: The same under the policy that sampled, [completions, time].
        mask: 1 for tokens that count, [completions, time].

    Returns:
        Ratios, [completions, 1]; 1 for a completion without tokens.
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = ((logps - old_logps) * mask).sum(dim=1, keepdim=True) / lengths
    return mean.clamp(max=MAX_LOG_RATIO).exp()


def clipped_objective(
    ratio: Tensor,
    advantages: Tensor,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """min(min(rho, delta) A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), to be maximised (PPO; CogAlign eq. 15).

    Args:
        ratio: Importance ratios.
        advantages: Advantages, broadcast to `ratio`.
        epsilon: Clip range below 1.
        epsilon_high: Clip range above 1 ("clip-higher", DAPO, arXiv 2503.14476, eq. 8); None is `epsilon`.
        delta: Largest ratio of the branch that is not clipped, above 1 + epsilon_high ("two-sided clip", INTELLECT-2,
            arXiv 2505.07291): it bounds the loss of a token that became likelier although its advantage is negative.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    free = ratio if delta is None else ratio.clamp(max=delta)
    return torch.minimum(free * advantages, ratio.clamp(1 - epsilon, 1 + high) * advantages)


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: KlName = "k3") -> Tensor:
    """Estimate of D_KL(pi_theta || pi_ref) at each token that the policy sampled; same shape.

    Schulman, "Approximating KL divergence" (2020), with x = log pi_ref - log pi_theta:

    - `k1`: -x. No bias, high variance, may be negative. As a part of a loss its gradient is that of log pi_theta alone,
      zero on average: it pulls nowhere and is here for comparison and for statistics.
    - `k2`: x^2 / 2. Never negative, some bias. On average its gradient is exactly that of the divergence.
    - `k3`: exp(x) - x - 1. Never negative, no bias, low variance; the paper's and TRL's.

    Raises:
        ValueError: `kind` is none of these.
    """
    log_ratio = ref_logps - logps
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    if kind == "k3":
        return log_ratio.clamp(max=MAX_LOG_RATIO).exp() - log_ratio - 1
    raise ValueError(f"grpo.kl: found {kind!r}, wanted 'k1', 'k2' or 'k3'")
