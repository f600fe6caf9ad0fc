"""From completions to rewards and advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogalign.data.case import Case
from cogalign.generation.hf import decode
from cogalign.grpo.advantages import gdpo_advantages, group_advantages, zero_spread
from cogalign.grpo.experience import MicroBatch
from cogalign.grpo.rewards.pool import PendingRewards, RewardPool
from cogalign.grpo.rewards.schedule import weights_at
from cogalign.grpo.rewards.total import reward_table, total_rewards
from cogalign.models.load import LoadedModel
from cogalign.recipe import GrpoSettings
from cogalign.training.heartbeat import beat
from cogalign.training.progress import say

COLUMNS = (
    "id",
    "counterfactual_of",
    "intervention",
    "organ",
    "findings",
    "keywords",
    "answer",
    "mask_file_name",
)
"""Fields of a case that rewards may read."""


def reward_columns(cases: Sequence[Case]) -> dict[str, list[Any]]:
    """What rewards may know of each completion's case, as plain values."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {name: [plain(getattr(case, name)) for case in cases] for name in COLUMNS}


@dataclass(frozen=True)
class Judgement:
    """Rewards of N completions.

    `single` [N, R] holds each reward (NaN where it is missing) and `total` [N] their weighted sum; `seconds` the time
    that each took.
    """

    names: tuple[str, ...]
    single: Tensor
    total: Tensor
    weights: Tensor
    seconds: Mapping[str, float]

    def rows(self, rows: slice | Tensor) -> Judgement:
        """Some completions only."""
        return Judgement(self.names, self.single[rows], self.total[rows], self.weights, self.seconds)


class Judge:
    """Sends completions to the reward pool and weighs what comes back."""

    def __init__(
        self, loaded: LoadedModel, pool: RewardPool, settings: GrpoSettings, question: Callable[..., Any]
    ) -> None:
        self.loaded, self.pool, self.settings, self._questions = loaded, pool, settings, question

    def submit(self, micros: Sequence[MicroBatch]) -> PendingRewards:
        """Start the rewards of some micro-batches, in their order."""
        group = self.settings.num_generations
        completions = [completion for micro in micros for completion in decode(self.loaded, micro.rollout)]
        draws = [draw for micro in micros for draw in micro.draws]
        repeated = [draw.case for draw in draws for _ in range(group)]
        return self.pool.submit(
            [completion.text for completion in completions],
            reward_columns(repeated),
            prompts=[question for question in self._questions(draws) for _ in range(group)],
            completion_ids=[list(completion.token_ids) for completion in completions],
        )

    def collect(self, pending: PendingRewards, step: int) -> Judgement:
        """The rewards, weighed as at optimizer step `step`; what went wrong is said."""
        beat("rewards")
        result = pending.collect()
        for name, index, message in result.errors[:3]:
            where = "all completions" if index is None else f"completion {index}"
            say(f"warning: step {step + 1}: reward {name}, {where}: {message}; counted as missing")
        if len(result.errors) > 3:
            say(f"warning: step {step + 1}: {len(result.errors) - 3} more rewards are missing")
        names, shares = tuple(result.values), weights_at(step, self.settings)
        weights = torch.tensor([shares[name] for name in names], dtype=torch.float32)
        single = reward_table(result.values)
        return Judgement(names, single, total_rewards(single, weights), weights, result.seconds)

    def advantages(self, judgement: Judgement, sum_over_ranks: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Advantages [N] of one optimizer step's completions.

        Args:
            judgement: their rewards.
            sum_over_ranks: adds a tensor over all ranks; None for one.
        """
        group, settings = self.settings.num_generations, self.settings
        if settings.aggregation == "gdpo":
            single = judgement.single.view(-1, group, len(judgement.names))
            return gdpo_advantages(
                single, judgement.weights, settings.scale_rewards, sum_over_ranks=sum_over_ranks
            ).flatten()
        grouped = judgement.total.view(-1, group)
        return group_advantages(grouped, settings.scale_rewards, sum_over_ranks=sum_over_ranks).flatten()

    def flat_groups(self, judgement: Judgement) -> Tensor:
        """[P], whether a group's rewards do not differ, so that it teaches nothing."""
        group = self.settings.num_generations
        if self.settings.aggregation == "gdpo":  # totals can agree while single rewards differ
            return zero_spread((judgement.single * judgement.weights).view(-1, group, len(judgement.names)))
        return zero_spread(judgement.total.view(-1, group))
