"""The losses of group relative policy optimization, as pure functions of log-probabilities.

Names of statistics are TRL's, so that dashboards made for it work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from cogalign.grpo.ratios import KlName, clipped_objective, kl_estimate, sequence_ratio, token_ratio
from cogalign.recipe_grpo import GrpoSettings, ObjectiveName

TOKEN_MEANS = ("dapo", "bnpo", "cispo")
"""Objectives that divide by a number of tokens."""


@dataclass(frozen=True)
class Objective:
    """What is minimised. The objectives differ in the ratio, the clip and the average.

    - `grpo`: ratio of tokens, clipped; mean over the tokens of a completion, then over completions (CogAlign eq. 15;
      DeepSeekMath, arXiv 2402.03300, eq. 3).
    - `dr_grpo`: sum over tokens by completions times `max_completion_length`, a constant, so that long completions
      are not favoured (arXiv 2503.20783).
    - `dapo`: mean over all tokens of the optimizer step, on all ranks (arXiv 2503.14476, eq. 8).
    - `bnpo`: mean over the tokens of the local batch: the rank's share of the step.
    - `gspo`: ratio of whole completions, clipped, averaged like `grpo` (arXiv 2507.18071, eq. 5 to 7). Its ratio stays
      close to 1, and its paper's clip range is 3e-4 below and 4e-4 above.
    - `cispo`: -sg(min(rho, 1 + epsilon_high)) A log pi_theta, averaged like `dapo`: no token loses its gradient
      (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5, without a lower bound). `epsilon_high` is the paper's: the cap of
      the weight is 1 + epsilon_high. TRL takes the cap itself for `epsilon_high`: its 5.0 is 4.0 here.
    """

    name: ObjectiveName = "grpo"
    epsilon: float = 0.2
    """Clip range below the ratio 1; `cispo` has no bound below."""
    epsilon_high: float | None = None
    """Clip range above the ratio 1; None is `epsilon`."""
    delta: float | None = None
    """Largest ratio at all (two-sided clip); None for no such limit. Not for `cispo`, whose cap it would double."""
    beta: float = 0.0
    """Weight of the KL divergence from the reference."""
    kl: KlName = "k3"
    """Estimator of the divergence, see `kl_estimate`."""
    max_completion_length: int = 512
    """Tokens of the longest possible completion, for `dr_grpo`."""

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names the field which does not fit."""
        if self.name not in get_args(ObjectiveName):
            raise ValueError(f"grpo.objective: found {self.name!r}, wanted one of {', '.join(get_args(ObjectiveName))}")
        if self.kl not in get_args(KlName):
            raise ValueError(f"grpo.kl: found {self.kl!r}, wanted one of {', '.join(get_args(KlName))}")
        for field in ("epsilon", "high", "beta"):
            if not getattr(self, field) >= 0:
                name = "epsilon_high" if field == "high" else field
                raise ValueError(f"grpo.{name}: found {getattr(self, field)}, wanted 0 or more")
        if self.delta is not None and not self.delta > 1 + self.high:
            raise ValueError(f"grpo.delta: found {self.delta}, wanted more than 1 + epsilon_high = {1 + self.high}")
        if self.delta is not None and self.name == "cispo":
            raise ValueError(
                f"grpo.delta: found {self.delta} with the objective cispo, wanted null: epsilon_high caps it"
            )
        if self.max_completion_length < 1:
            raise ValueError(f"grpo.max_completion_length: found {self.max_completion_length}, wanted at least 1")

    @property
    def high(self) -> float:
        """Clip range above 1."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @classmethod
    def from_settings(cls, settings: GrpoSettings) -> Objective:
        """The objective of a recipe."""
        return cls(
            settings.objective,
            settings.epsilon,
            settings.epsilon_high,
            settings.delta,
            settings.beta,
            settings.kl,
            settings.max_completion_length,
        )


@dataclass(frozen=True)
class LossStats:
    """Sums with the numbers of what was summed, which can be added over micro-batches and ranks.

    `totals` holds the sums and, below them, how many tokens (completions for the clip of `gspo`) each is over:
    [2, len(names)], float64, detached. Over ranks: `LossStats(stats.names, all_reduce_sum(stats.totals))`.
    """

    names: tuple[str, ...]
    totals: Tensor

    def __add__(self, other: LossStats) -> LossStats:
        """Statistics of both together; both must have the same names."""
        if self.names != other.names:
            raise ValueError(f"loss statistics: found {other.names}, wanted {self.names}")
        return LossStats(self.names, self.totals + other.totals)

    def means(self) -> dict[str, float]:
        """Means by name; 0 when there was no token."""
        sums, counts = self.totals.tolist()
        return {name: a / max(b, 1.0) for name, a, b in zip(self.names, sums, counts, strict=True)}


def step_normalizer(
    objective: Objective,
    completions: float,
    tokens: float,
    world_size: int = 1,
    local_tokens: float | None = None,
) -> float:
    """What the sums of an optimizer step are divided by; never 0.

    Divided by it, the losses of the micro-batches of a rank add up to that rank's share; after DDP has averaged the
    gradients over the ranks, the update does not depend on their number. Only `bnpo` does: it averages over each rank's
    own tokens, by its definition.

    Args:
        objective: The objective.
        completions: Completions of the optimizer step on all ranks, empty ones included.
        tokens: Tokens that count (mask 1) of the optimizer step on all ranks.
        world_size: Number of ranks that average their gradients.
        local_tokens: Tokens of this rank, which `bnpo` needs on several ranks; None is `tokens` on one rank.

    Raises:
        ValueError: `world_size` is not positive, or `local_tokens` is missing.
    """
    if world_size < 1:
        raise ValueError(f"world_size: found {world_size}, wanted at least 1")
    if objective.name == "bnpo":
        if local_tokens is None and world_size > 1:
            raise ValueError(f"local_tokens: found None with bnpo on {world_size} ranks, wanted this rank's tokens")
        return max(tokens if local_tokens is None else local_tokens, 1.0)
    if objective.name in TOKEN_MEANS:
        return max(tokens, 1.0) / world_size
    scale = objective.max_completion_length if objective.name == "dr_grpo" else 1.0
    return max(completions, 1.0) * scale / world_size


def truncation_mask(mask: Tensor, finished: Tensor) -> Tensor:
    """`mask` with 0 in the rows of completions that were cut off, which then teach nothing (DAPO, section 3.4).

    Like an empty completion such a row still counts as one for the objectives that divide by completions, as in TRL.

    Args:
        mask: 1 for tokens that count, [completions, time].
        finished: Whether a completion ended by itself, [completions].

    Raises:
        ValueError: shapes do not fit.
    """
    if finished.shape != mask.shape[:1]:
        raise ValueError(f"finished: found the shape {list(finished.shape)}, wanted {list(mask.shape[:1])}")
    return mask * finished.to(mask.dtype).unsqueeze(1)


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    objective: Objective,
    normalizer: float | None = None,
    entropies: Tensor | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """A micro-batch's share of the loss of an optimizer step.

    Sums over its completions or tokens are divided by `normalizer`. Give that of the whole step (`step_normalizer`)
    and add up the losses of the micro-batches: value and gradient do not depend on the split, the order, or on what
    was sampled together with them. An empty completion adds 0.

    Args:
        logps: Log-probabilities of the completions' tokens under the policy, [completions, time], float32 or float64.
        old_logps: The same under the policy that sampled them; None when it is the policy itself (one update a batch).
        ref_logps: The same under the reference; may be None when `objective.beta` is 0.
        advantages: One for each completion, [completions].
        mask: 1 for tokens that count, 0 for padding, [completions, time]. What stands at masked positions, NaN and
            infinity included, changes neither loss nor gradient.
        objective: What is minimised.
        normalizer: What to divide by; None is that of this call as a whole optimizer step.
        entropies: Entropy of the policy at each token, [completions, time], for the statistics only.
        importance: Weights of the tokens' policy terms where another engine sampled (`importance_weights`),
            [completions, time]. The KL term is not weighed, as in TRL.

    Returns:
        The loss (a scalar) and the statistics `kl` (when `beta` > 0; the chosen estimator), `entropy` (when given),
        `clip_ratio/low_mean`, `clip_ratio/high_mean`, `clip_ratio/region_mean`, or for `cispo` `cispo_clip_ratio`.

    Raises:
        ValueError: shapes do not fit, `normalizer` is not positive, or `ref_logps` is missing with `beta` > 0.
    """
    _check(logps, old_logps, ref_logps, advantages, mask, entropies, importance)
    keep = mask.bool()
    # Cleaned here, before any arithmetic: 0 * inf would be NaN.
    logps = _clean(logps, keep)
    old = logps.detach() if old_logps is None else _clean(old_logps, keep)
    advantage = _clean(advantages.detach().to(logps.dtype).unsqueeze(1).expand_as(logps), keep)

    is_sequence = objective.name == "gspo"
    ratio = sequence_ratio(logps, old, keep).expand_as(logps) if is_sequence else token_ratio(logps, old)
    token_loss = _policy_loss(logps, ratio, advantage, objective)
    observed = _clipped(ratio.detach(), advantage, objective)
    counts = {}
    if is_sequence:  # one value for each completion, as in TRL
        observed = {name: value.any(dim=1) for name, value in observed.items()}
        counts = dict.fromkeys(observed, torch.tensor(len(logps), device=logps.device))
    if importance is not None:
        token_loss = token_loss * _clean(importance.detach().to(logps.dtype), keep)
    if objective.beta > 0:
        if ref_logps is None:
            raise ValueError(f"ref_logps: found None with beta = {objective.beta}, wanted those of the reference")
        kl = kl_estimate(logps, _clean(ref_logps, keep), objective.kl)
        token_loss = token_loss + objective.beta * kl
        observed = {"kl": kl.detach() * keep, **observed}
    if entropies is not None:
        observed = {"entropy": _clean(entropies.detach(), keep), **observed}

    tokens = keep.sum()
    sums = torch.stack([value.sum(dtype=torch.float64) for value in observed.values()])
    over = torch.stack([counts.get(name, tokens) for name in observed]).double()
    loss = _share(token_loss, keep, objective, normalizer)
    return loss, LossStats(tuple(observed), torch.stack([sums, over]))


def _policy_loss(logps: Tensor, ratio: Tensor, advantage: Tensor, objective: Objective) -> Tensor:
    """The policy term of each token, [completions, time]."""
    if objective.name == "cispo":
        return -ratio.detach().clamp(max=1 + objective.high) * advantage * logps
    return -clipped_objective(ratio, advantage, objective.epsilon, objective.epsilon_high, objective.delta)


def _share(token_loss: Tensor, keep: Tensor, objective: Objective, normalizer: float | None) -> Tensor:
    """Sum of the micro-batch by the normalizer."""
    if normalizer is None:
        normalizer = step_normalizer(objective, float(len(keep)), float(keep.sum()))
    elif not normalizer > 0:
        raise ValueError(f"normalizer: found {normalizer}, wanted a positive number")
    kept = token_loss * keep
    if objective.name in ("grpo", "gspo"):
        return (kept.sum(dim=1) / keep.sum(dim=1).clamp(min=1)).sum() / normalizer
    return kept.sum() / normalizer


def _clean(values: Tensor, keep: Tensor) -> Tensor:
    """`values` with 0 at masked positions."""
    return torch.where(keep, values, torch.zeros_like(values))


def _clipped(ratio: Tensor, advantage: Tensor, objective: Objective) -> dict[str, Tensor]:
    """Where the clip acts. An advantage of 0, which all masked positions have, is never clipped."""
    is_high = (ratio > 1 + objective.high) & (advantage > 0)
    if objective.name == "cispo":
        return {"cispo_clip_ratio": is_high}
    is_low = (ratio < 1 - objective.epsilon) & (advantage < 0)
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
    entropies: Tensor | None,
    importance: Tensor | None,
) -> None:
    """Raise a `ValueError` that names the argument which does not fit."""
    shape = list(logps.shape)
    named = {"old_logps": old_logps, "ref_logps": ref_logps, "mask": mask}
    for name, value in {**named, "entropies": entropies, "importance": importance}.items():
        if value is not None and list(value.shape) != shape:
            raise ValueError(f"{name}: found the shape {list(value.shape)}, wanted {shape}, that of logps")
    if list(advantages.shape) != shape[:1]:
        raise ValueError(f"advantages: found the shape {list(advantages.shape)}, wanted {shape[:1]}, one a completion")
