"""The clipped GRPO objective with a KL penalty, as pure functions of log-probabilities.

Names of statistics are TRL's, so that dashboards made for it work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp() is not taken of more: the ratio is far outside of any clip range then, and infinity would give NaN gradients."""


@dataclass(frozen=True)
class LossStats:
    """Sums over tokens, which can be added over micro-batches and ranks before they are divided.

    `totals` holds the sum of each name and, last, the number of tokens: [len(names) + 1], float64, detached.
    Over ranks: `LossStats(stats.names, all_reduce_sum(stats.totals))`.
    """

    names: tuple[str, ...]
    totals: Tensor

    def __add__(self, other: LossStats) -> LossStats:
        """Statistics of both together; both must have the same names."""
        if self.names != other.names:
            raise ValueError(f"loss statistics: found {other.names}, wanted {self.names}")
        return LossStats(self.names, self.totals + other.totals)

    def means(self) -> dict[str, float]:
        """Means over tokens, by name; 0 when there was no token."""
        *sums, tokens = self.totals.tolist()
        return {name: value / max(tokens, 1.0) for name, value in zip(self.names, sums, strict=True)}


def token_ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Importance ratio rho = pi_theta / pi_old of each token, from log-probabilities; same shape.

    It is capped at exp(20), beyond any sensible clip range, so that it never becomes infinite.
    """
    return (logps - old_logps).clamp(max=MAX_LOG_RATIO).exp()


def clipped_objective(
    ratio: Tensor, advantages: Tensor, epsilon: float = 0.2, epsilon_high: float | None = None
) -> Tensor:
    """min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), to be maximised (PPO; CogAlign eq. 15).

    Args:
        ratio: Importance ratios.
        advantages: Advantages, broadcast to `ratio`.
        epsilon: Clip range below 1.
        epsilon_high: Clip range above 1 ("clip-higher" of DAPO); None is `epsilon`.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    return torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + high) * advantages)


def k3_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimator of D_KL(pi_theta || pi_ref) of each token: pi_ref / pi_theta - log(pi_ref / pi_theta) - 1.

    Schulman's k3 for tokens drawn from the policy: never negative, 0 where both agree, of low variance.
    """
    log_ratio = ref_logps - logps
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp() - log_ratio - 1


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    normalizer: float | None = None,
    entropies: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """Loss of a micro-batch of completions (CogAlign eq. 15 with its sign turned; TRL's loss type `grpo`).

    The mean over the tokens of a completion, summed over the completions, divided by `normalizer`. Give the number of
    completions of the whole optimizer step as `normalizer` and add up the losses of the micro-batches: value and
    gradient do not depend on the split. (Where gradients are averaged over ranks, as in DDP, it is the number of
    completions of the step on one rank.) An empty completion adds 0 and still counts.

    Args:
        logps: Log-probabilities of the completions' tokens under the policy, [completions, time].
        old_logps: The same under the policy that sampled them; None when it is the policy itself (one update a batch).
        ref_logps: The same under the reference; may be None when `beta` is 0.
        advantages: One for each completion, [completions].
        mask: 1 for tokens that count, 0 for padding, [completions, time]. What stands at masked positions, NaN and
            infinity included, changes neither loss nor gradient.
        epsilon: Clip range below the ratio 1.
        epsilon_high: Clip range above the ratio 1; None is `epsilon`.
        beta: Weight of the KL divergence from the reference.
        normalizer: Number of completions to divide by; None is those of this call.
        entropies: Entropy of the policy at each token, [completions, time], for the statistics only.

    Returns:
        The loss (a scalar) and the statistics `kl` (when `beta` > 0), `entropy` (when given), `clip_ratio/low_mean`,
        `clip_ratio/high_mean`, `clip_ratio/region_mean`.

    Raises:
        ValueError: shapes do not fit, `normalizer` is not positive, or `ref_logps` is missing with `beta` > 0.
    """
    _check(logps, old_logps, ref_logps, advantages, mask, beta, normalizer)
    keep = mask.bool()
    # Cleaned here, before any arithmetic: 0 * inf would be NaN.
    logps = _clean(logps, keep)
    old = logps.detach() if old_logps is None else _clean(old_logps, keep)
    advantage = advantages.detach().to(logps.dtype).unsqueeze(1)

    ratio = token_ratio(logps, old)
    token_loss = -clipped_objective(ratio, advantage, epsilon, epsilon_high)
    observed = _clipped(ratio.detach(), advantage, epsilon, epsilon_high)
    if beta > 0 and ref_logps is not None:
        kl = k3_kl(logps, _clean(ref_logps, keep))
        token_loss = token_loss + beta * kl
        observed = {"kl": kl.detach(), **observed}
    if entropies is not None:
        observed = {"entropy": _clean(entropies.detach(), keep), **observed}

    per_completion = (token_loss * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
    count = float(logps.shape[0]) if normalizer is None else normalizer
    sums = [(value * keep).sum(dtype=torch.float64) for value in (*observed.values(), keep)]
    return per_completion.sum() / count, LossStats(tuple(observed), torch.stack(sums))


def _clean(values: Tensor, keep: Tensor) -> Tensor:
    """`values` with 0 at masked positions."""
    return torch.where(keep, values, torch.zeros_like(values))


def _clipped(ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float | None) -> dict[str, Tensor]:
    """Where the clip takes the gradient away: ratio too low and A < 0, or too high and A > 0."""
    high = epsilon if epsilon_high is None else epsilon_high
    is_low = (ratio < 1 - epsilon) & (advantage < 0)
    is_high = (ratio > 1 + high) & (advantage > 0)
    return {
        "clip_ratio/low_mean": is_low,
        "clip_ratio/high_mean": is_high,
        "clip_ratio/region_mean": is_low | is_high,
    }


def _check(
    logps: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    beta: float,
    normalizer: float | None,
) -> None:
    """Raise a `ValueError` that names the argument which does not fit."""
    shape = list(logps.shape)
    for name, value in (("old_logps", old_logps), ("ref_logps", ref_logps), ("mask", mask)):
        if value is not None and list(value.shape) != shape:
            raise ValueError(f"{name}: found the shape {list(value.shape)}, wanted {shape}, that of logps")
    if list(advantages.shape) != shape[:1]:
        raise ValueError(f"advantages: found the shape {list(advantages.shape)}, wanted {shape[:1]}, one a completion")
    if beta > 0 and ref_logps is None:
        raise ValueError(f"ref_logps: found None with beta = {beta}, wanted the reference's log-probabilities")
    if normalizer is not None and not normalizer > 0:
        raise ValueError(f"normalizer: found {normalizer}, wanted a positive number of completions")
