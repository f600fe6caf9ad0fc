"""One generation: sample groups, judge them, replace those that teach nothing, score them under old and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cogalign.data.case import Case
from cogalign.grpo.advantages import zero_spread_share
from cogalign.grpo.engine import Engine
from cogalign.grpo.experience import Draw, Experience, MicroBatch, Origin, Slice, joined, rows_of
from cogalign.grpo.importance import ImportanceStats, importance_weights
from cogalign.grpo.judge import Judge, Judgement
from cogalign.grpo.losses import truncation_mask
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.observe import length_metrics, reward_metrics
from cogalign.recipe import GrpoSettings
from cogalign.training.seeding import derive_seed
from cogalign.training.stopwatch import Stopwatch

MIX, SPARE = 0, 1
"""Streams of prompts: those of the recipe's mix, and those that replace groups that teach nothing."""


@dataclass(frozen=True)
class Ranks:
    """How this process talks to the others; the defaults are those of a single one."""

    rank: int = 0
    world_size: int = 1
    sum: Callable[[Tensor], Tensor] = lambda values: values
    gather: Callable[[Tensor], Tensor] = lambda values: values
    """[N, ...] of each rank to [world * N, ...]."""


class Collector:
    """Makes the experience of a generation."""

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        settings: GrpoSettings,
        mix: PromptSampler,
        spare: PromptSampler | None,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.engine, self.judge, self.settings = engine, judge, settings
        self.streams = {MIX: mix, SPARE: spare}
        self.seed, self.ranks = seed, ranks

    def find(self, origin: Origin) -> Case:
        """The case of an origin."""
        stream = self.streams[origin[0]]
        assert stream is not None
        return stream.step(origin[1])[origin[2]]

    def collect(self, generation: int, step: int, watch: Stopwatch) -> Experience:
        """Completions for `steps_per_generation` optimizer steps, with all that their updates need.

        Args:
            generation: its number, from 0.
            step: the optimizer step that comes next, from 0.
            watch: takes the times.
        """
        count = self.settings.steps_per_generation
        self.engine.renew_features()
        with watch("sampling"):
            self._look_ahead(generation + 1)
            parts = [self._sampled(MIX, generation * count + index, None) for index in range(count)]
        micros = [micro for part in parts for micro in part]
        with watch("rewards"):
            pending = self.judge.submit(micros)
        replaced = 0.0
        if self.settings.dynamic_sampling:
            with watch("rewards"):
                judgement = self.judge.collect(pending, step)
            judgement, replaced = self._without_flat_groups(micros, judgement, generation, step, watch)
            self._score(parts, watch)
        else:
            self._score(parts, watch)  # while the rewards are computed
            with watch("rewards"):
                judgement = self.judge.collect(pending, step)
        slices = self._slices(parts, judgement)
        for part in slices:
            if self.settings.dynamic_sampling:
                part.metrics["dynamic_sampling/replaced"] = replaced
        return Experience(slices, self.settings.num_iterations)

    def _look_ahead(self, generation: int) -> None:
        """Wait for the images of this generation, and let those of the next one be made ready."""
        ahead, source, count = self.engine.ahead, self.streams[MIX], self.settings.steps_per_generation
        assert source is not None
        if ahead.active:
            ahead.wait()
            steps = range(generation * count, (generation + 1) * count)
            cases = [case for index in steps for case in source.step(index)]
            ahead.submit(lambda: [self.engine.read_image(case) for case in cases])

    def _sampled(self, stream: int, index: int, limit: int | None) -> list[MicroBatch]:
        """Micro-batches of the step `index` of a stream, of its first `limit` cases."""
        source = self.streams[stream]
        assert source is not None
        draws = [Draw(case, (stream, index, place)) for place, case in enumerate(source.step(index))]
        if limit is not None:  # any of the step's places, so that replacements keep the mix
            order = np.random.default_rng(derive_seed(self.seed, "places", index)).permutation(len(draws))
            draws = [draws[place] for place in sorted(order[:limit])]
        size, kind = self.settings.micro_batch, "rollout" if stream == MIX else "replacement"
        alone = len(draws) <= size and stream == MIX
        # with one micro-batch a generation its first pass can be kept for its first update
        keep = alone and self.settings.steps_per_generation == 1 and not self.settings.dynamic_sampling
        micros = []
        for part, first in enumerate(range(0, len(draws), size)):
            seed = derive_seed(self.seed, kind, index, part, self.ranks.rank)
            micros.append(self.engine.sample(draws[first : first + size], seed, keep))
        return micros

    def _without_flat_groups(
        self, micros: Sequence[MicroBatch], judgement: Judgement, generation: int, step: int, watch: Stopwatch
    ) -> tuple[Judgement, float]:
        """Replace groups whose rewards do not differ by groups of new prompts whose do (DAPO, section 3.2).

        Returns:
            The rewards after it, and the share of the groups that were replaced.
        """
        rounds, replaced = self.settings.dynamic_sampling, 0
        for number in range(rounds):
            flat = self.judge.flat_groups(judgement).nonzero()[:, 0].tolist()
            if not float(self.ranks.sum(torch.tensor([float(len(flat))], device=self.engine.device))[0]):
                break
            if not flat:
                continue  # other ranks still look
            with watch("sampling"):
                fresh = self._sampled(SPARE, generation * rounds + number, len(flat))
            with watch("rewards"):
                found = self.judge.collect(self.judge.submit(fresh), step)
            good = (~self.judge.flat_groups(found)).nonzero()[:, 0].tolist()
            for place, chosen in zip(flat, good, strict=False):
                judgement = self._replace(micros, judgement, place, fresh, found, chosen)
                replaced += 1
        return judgement, replaced / max(1, sum(len(micro.draws) for micro in micros))

    def _replace(
        self,
        micros: Sequence[MicroBatch],
        judgement: Judgement,
        place: int,
        fresh: Sequence[MicroBatch],
        found: Judgement,
        chosen: int,
    ) -> Judgement:
        """Put group `chosen` of `fresh` at `place` among the groups of `micros`."""
        group = self.settings.num_generations
        old, row = _locate(micros, place)
        new, taken = _locate(fresh, chosen)
        pad = self.engine.loaded.tokenizer.pad_token_id
        both = joined([old.rollout, new.rollout], pad)
        rows = torch.arange(len(old), device=both.ids.device)
        rows[row * group : (row + 1) * group] = len(old) + taken * group + torch.arange(group, device=rows.device)
        old.rollout, old.prompts = rows_of(both, rows), None
        old.draws[row] = new.draws[taken]
        single, total = judgement.single.clone(), judgement.total.clone()
        here, there = (slice(i * group, (i + 1) * group) for i in (place, chosen))
        single[here], total[here] = found.single[there], found.total[there]
        return replace(judgement, single=single, total=total)

    def _score(self, parts: Sequence[Sequence[MicroBatch]], watch: Stopwatch) -> None:
        """Reference and old log-probabilities, where something needs them.

        The first slice is updated before anything has changed: its own pass gives the old ones.
        """
        with watch("scoring"):
            for index, part in enumerate(parts):
                for micro in part:
                    micro.ref_logps = self.engine.reference_logps(micro)
                    if index > 0 or micro.rollout.logps is not None:
                        micro.old_logps = self.engine.old_logps(micro)

    def _slices(self, parts: Sequence[list[MicroBatch]], judgement: Judgement) -> list[Slice]:
        """Advantages, masks and metrics, each optimizer step's from its own completions."""
        slices, first = [], 0
        for micros in parts:
            size = sum(map(len, micros))
            mine = judgement.rows(slice(first, first + size))
            first += size
            sum_over_ranks = self.ranks.sum if self.ranks.world_size > 1 else None
            advantages = self.judge.advantages(mine, sum_over_ranks).to(self.engine.device)
            for micro, share in zip(micros, advantages.split([len(m) for m in micros]), strict=True):
                micro.advantages = share
                micro.mask = micro.rollout.mask
                if self.settings.mask_truncated:
                    micro.mask = truncation_mask(micro.mask, micro.rollout.finished)
            slices.append(Slice(micros, {**self._metrics(micros, mine), **self._importance(micros)}))
        return slices

    def _metrics(self, micros: Sequence[MicroBatch], judgement: Judgement) -> dict[str, float]:
        """Lengths and rewards over the completions of all ranks."""
        lengths = torch.cat([micro.rollout.mask.sum(1) for micro in micros]).cpu()
        finished = torch.cat([micro.rollout.finished for micro in micros]).cpu()
        table = torch.cat([lengths[:, None], finished[:, None], judgement.total[:, None], judgement.single], 1)
        table = self.ranks.gather(table.float().to(self.engine.device)).cpu()
        grouped = table[:, 2].view(-1, self.settings.num_generations)
        return {
            **length_metrics(table[:, 0], table[:, 1] > 0),
            **reward_metrics(grouped, table[:, 3:], judgement.names, judgement.seconds),
            "frac_reward_zero_std": zero_spread_share(grouped),
        }

    def _importance(self, micros: Sequence[MicroBatch]) -> dict[str, float]:
        """The correction where another engine sampled, and how far the two are apart (on this rank)."""
        stats: ImportanceStats | None = None
        for micro in micros:
            if micro.rollout.logps is None or micro.old_logps is None or micro.mask is None:
                continue
            micro.importance, part = importance_weights(
                micro.old_logps, micro.rollout.logps, micro.mask, self.settings.importance, self.settings.importance_cap
            )
            stats = part if stats is None else stats + part
        return {} if stats is None else stats.metrics()


def _locate(micros: Sequence[MicroBatch], place: int) -> tuple[MicroBatch, int]:
    """The micro-batch that holds the group `place`, and the group's place in it."""
    for micro in micros:
        if place < len(micro.draws):
            return micro, place
        place -= len(micro.draws)
    raise IndexError(f"no group {place}")
