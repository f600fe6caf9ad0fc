"""Correction of the loss where another engine than the policy's own sampled the tokens.

An inference server computes with other kernels and types, so its probabilities differ from those that training sees.
The token's weight pi_train / pi_sampler makes up for it. Names of statistics are TRL's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cogalign.grpo.ratios import MAX_LOG_RATIO

ImportanceMode = Literal["truncate", "mask", "none"]


@dataclass(frozen=True)
class ImportanceStats:
    """How far sampler and policy are apart, in numbers that can be put together over micro-batches and ranks.

    Over ranks: `ImportanceStats(all_reduce_sum(stats.sums), all_reduce_max(stats.extremes))`.
    """

    sums: Tensor
    """|difference| of the log-probabilities, tokens where it is known, weights, tokens: [4], float64."""
    extremes: Tensor
    """Largest |difference|, smallest weight with its sign turned, largest weight: [3], float64, -inf without tokens."""

    def __add__(self, other: ImportanceStats) -> ImportanceStats:
        """Statistics of both together."""
        return ImportanceStats(self.sums + other.sums, torch.maximum(self.extremes, other.extremes))

    def metrics(self) -> dict[str, float]:
        """Metrics under TRL's names; 0 where there was no token. Means are over tokens, also on several ranks."""
        difference, known, weight, tokens = self.sums.tolist()
        largest, smallest_weight, largest_weight = self.extremes.nan_to_num(neginf=0.0).tolist()
        return {
            "sampling/sampling_logp_difference/mean": difference / max(known, 1.0),
            "sampling/sampling_logp_difference/max": largest,
            "sampling/importance_sampling_ratio/min": 0.0 - smallest_weight,
            "sampling/importance_sampling_ratio/mean": weight / max(tokens, 1.0),
            "sampling/importance_sampling_ratio/max": largest_weight,
        }


@torch.no_grad()
def importance_weights(
    policy_logps: Tensor, sampler_logps: Tensor, mask: Tensor, mode: ImportanceMode, cap: float
) -> tuple[Tensor, ImportanceStats]:
    """Weight pi_train / pi_sampler of each token, for `grpo_loss(importance=...)`; without gradient.

    TRL's `vllm_importance_sampling_mode` `token_truncate` and `token_mask` with `vllm_importance_sampling_clip_max`
    (truncated importance sampling: Espeholt et al., IMPALA, arXiv 1802.01561, section 4.1).

    Args:
        policy_logps: Log-probabilities under the model that is trained, as it was when the tokens were sampled (the old
            ones, before any update), [completions, time].
        sampler_logps: The same as the sampler reported them, [completions, time]. NaN is a token it did not report: its
            weight is 1 and it is left out of the differences.
        mask: 1 for tokens that count, [completions, time]; what stands elsewhere changes nothing, its weight is 1.
        mode: `truncate` cuts weights to `cap`, `mask` gives 0 to tokens with a larger one, `none` gives 1 to all and
            only measures.
        cap: Largest weight, at least 1.

    Returns:
        The weights, [completions, time], in the type of `policy_logps`, and the statistics.

    Raises:
        ValueError: shapes do not fit, `mode` is unknown, or `cap` is below 1.
    """
    shape = list(policy_logps.shape)
    for name, value in (("sampler_logps", sampler_logps), ("mask", mask)):
        if list(value.shape) != shape:
            raise ValueError(f"{name}: found the shape {list(value.shape)}, wanted {shape}, that of policy_logps")
    if mode not in ("truncate", "mask", "none"):
        raise ValueError(f"grpo.importance: found {mode!r}, wanted 'truncate', 'mask' or 'none'")
    if not cap >= 1:
        raise ValueError(f"grpo.importance_cap: found {cap}, wanted at least 1")
    keep = mask.bool()
    difference = policy_logps - sampler_logps.to(policy_logps)
    known = keep & ~difference.isnan()
    difference = torch.where(known, difference, torch.zeros_like(difference))
    weights = _weights(difference, mode, cap)
    return weights, _stats(difference.abs(), known, weights, keep)


def _weights(difference: Tensor, mode: ImportanceMode, cap: float) -> Tensor:
    """Weights from the differences of log-probabilities."""
    if mode == "none":
        return torch.ones_like(difference)
    ratio = difference.clamp(max=MAX_LOG_RATIO).exp()
    if mode == "truncate":
        return ratio.clamp(max=cap)
    return torch.where(ratio > cap, torch.zeros_like(ratio), ratio)


def _stats(distance: Tensor, known: Tensor, weights: Tensor, keep: Tensor) -> ImportanceStats:
    """Sums and extremes; `distance` is 0 where it is not known."""
    nothing = torch.full((), -torch.inf, dtype=torch.float64, device=weights.device)
    distance, weights = distance.double(), weights.double()
    sums = torch.stack([distance.sum(), known.sum().double(), (weights * keep).sum(), keep.sum().double()])
    columns = ((distance, known), (-weights, keep), (weights, keep))
    # The extra element makes a maximum of what may be empty.
    extremes = [torch.cat([value[where], nothing.reshape(1)]).max() for value, where in columns]
    return ImportanceStats(sums, torch.stack(extremes))
