"""One generation: sample groups, judge them, replace those that teach nothing, score them under old and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cogalign.data.case import Case
from cogalign.generation.uniforms import Share
from cogalign.grpo.advantages import zero_spread_share
from cogalign.grpo.demonstrations import without_demonstrations
from cogalign.grpo.engine import Engine
from cogalign.grpo.experience import Draw, Experience, MicroBatch, Origin, Slice
from cogalign.grpo.importance import ImportanceStats, importance_weights
from cogalign.grpo.judge import Judge, Judgement
from cogalign.grpo.losses import truncation_mask
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.observe import length_metrics, reward_metrics
from cogalign.grpo.ranks import Ranks
from cogalign.grpo.replace import global_place, groups_of, put
from cogalign.recipe import GrpoSettings
from cogalign.training.ranks import everyone
from cogalign.training.seeding import derive_seed
from cogalign.training.stopwatch import Stopwatch

MIX, SPARE = 0, 1
"""Streams of prompts: those of the recipe's mix, and those that replace groups that teach nothing."""
Micros = list[MicroBatch]


def at_once(work: Callable[[], Micros]) -> Micros:
    """The result of work that no server can fail."""
    return work()


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
        surely: Callable[[Callable[[], Micros]], Micros] = at_once,
    ) -> None:
        """Put the parts together; `surely` does work with a server that may fail, on all ranks alike."""
        self.engine, self.judge, self.settings = engine, judge, settings
        self.streams = {MIX: mix, SPARE: spare}
        self.seed, self.ranks, self._surely = seed, ranks, surely

    def find(self, origin: Origin) -> Case:
        """The case of an origin; its place is that among the cases of all ranks."""
        stream = self.streams[origin[0]]
        assert stream is not None
        return stream.global_step(origin[1])[origin[2]]

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

    def _sampled(self, stream: int, index: int, limit: int | None) -> Micros:
        """This rank's micro-batches of the step `index` of a stream, of `limit` of its cases (over all ranks)."""
        source = self.streams[stream]
        assert source is not None
        draws = [Draw(case, (stream, index, place)) for place, case in enumerate(source.global_step(index))]
        if limit is not None:  # any of the step's places, so that replacements keep the mix
            order = np.random.default_rng(derive_seed(self.seed, "places", index)).permutation(len(draws))
            draws = [draws[place] for place in sorted(order[:limit])]
        size, kind = self.settings.micro_batch, "rollout" if stream == MIX else "replacement"
        mine = self.ranks.cut(len(draws))
        alone = len(mine) <= size and stream == MIX
        # with one micro-batch a generation its first pass can be kept for its first update
        keep = alone and self.settings.steps_per_generation == 1 and not self.settings.dynamic_sampling
        # neither rank nor micro-batch is in the seed: each takes its share of the whole step's random numbers
        seed = derive_seed(self.seed, kind, index, 0, 0)
        parts = [mine[first : first + size] for first in range(0, len(mine), size)]
        return self._surely(
            lambda: [
                self.engine.sample([draws[place] for place in part], seed, keep, Share(part, len(draws)))
                for part in parts
            ]
        )

    def _without_flat_groups(
        self, micros: Sequence[MicroBatch], judgement: Judgement, generation: int, step: int, watch: Stopwatch
    ) -> tuple[Judgement, float]:
        """Replace groups whose rewards do not differ.

        Returns:
            The rewards after it, and the share of the groups of all ranks that were replaced.
        """
        rounds, group, replaced = self.settings.dynamic_sampling, self.settings.num_generations, 0
        here = sum(len(micro.draws) for micro in micros)
        size = here // self.settings.steps_per_generation
        for number in range(rounds):
            flat = self.judge.flat_groups(judgement).nonzero()[:, 0].tolist()
            places = {global_place(place, size, self.ranks): place for place in flat}
            everywhere = sorted(place for rank in everyone(list(places)) for place in rank)
            if not everywhere:
                break
            with watch("sampling"):
                fresh = self._sampled(SPARE, generation * rounds + number, len(everywhere))
            good = []
            if fresh:  # there may be fewer than ranks
                with watch("rewards"):
                    found = self.judge.collect(self.judge.submit(fresh), step)
                chosen = (~self.judge.flat_groups(found)).nonzero()[:, 0].tolist()
                good = groups_of(fresh, found, chosen, group)
            candidates = [candidate for rank in everyone(good) for candidate in rank]
            for place, candidate in zip(everywhere, candidates, strict=False):
                replaced += 1
                if place in places:
                    draw = Draw(self.find(candidate.origin), candidate.origin)
                    pad = self.engine.loaded.tokenizer.pad_token_id
                    judgement = put(micros, judgement, places[place], candidate, draw, pad)
        return judgement, replaced / max(1, here * self.ranks.world_size)

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
        """Lengths and rewards over the policy's own completions on all ranks."""
        lengths = torch.cat([micro.rollout.mask.sum(1) for micro in micros]).cpu()
        finished = torch.cat([micro.rollout.finished for micro in micros]).cpu()
        table = torch.cat([lengths[:, None], finished[:, None], judgement.total[:, None], judgement.single], 1)
        table = self.ranks.gather(table.float().to(self.engine.device)).cpu()
        size, told = self.settings.num_generations, self.settings.demonstrations
        own = without_demonstrations(table, size, told)
        return {
            **length_metrics(own[:, 0], own[:, 1] > 0),
            **reward_metrics(own[:, 2].view(-1, size - told), own[:, 3:], judgement.names, judgement.seconds),
            "frac_reward_zero_std": zero_spread_share(table[:, 2].view(-1, size)),
        }

    def _importance(self, micros: Sequence[MicroBatch]) -> dict[str, float]:
        """The correction where another engine sampled, and how far the two are apart (on all ranks)."""
        stats: ImportanceStats | None = None
        for micro in micros:
            if micro.rollout.logps is None or micro.old_logps is None or micro.mask is None:
                continue
            micro.importance, part = importance_weights(
                micro.old_logps, micro.rollout.logps, micro.mask, self.settings.importance, self.settings.importance_cap
            )
            stats = part if stats is None else stats + part
        if stats is None:
            return {}
        extremes = self.ranks.gather(stats.extremes[None]).amax(0)
        return ImportanceStats(self.ranks.sum(stats.sums), extremes).metrics()
