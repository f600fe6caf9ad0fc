"""Stage 3 as a LightningModule: sample groups, reward them, take clipped steps towards the better completions.

One `training_step` is one optimizer step. A generation serves `steps_per_generation * num_iterations` of them; what it
left behind is part of every checkpoint, so that a run killed in the middle goes on with the same completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor

from cogalign.data.case import Case
from cogalign.generation.hf import decode
from cogalign.grpo import experience as buffer
from cogalign.grpo.collect import Collector, at_once
from cogalign.grpo.engine import Engine
from cogalign.grpo.experience import Experience, MicroBatch, Slice
from cogalign.grpo.judge import Judge
from cogalign.grpo.losses import LossStats, Objective, grpo_loss, step_normalizer
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.observe import batch_of, sample_rows
from cogalign.grpo.ranks import Ranks
from cogalign.grpo.recut import recut
from cogalign.grpo.rewards.pool import RewardPool
from cogalign.grpo.vllm_rollouts import VllmRollouts
from cogalign.models.adapt import parameter_groups
from cogalign.models.blocks import configure_sharding
from cogalign.models.load import LoadedModel
from cogalign.recipe import GrpoSettings
from cogalign.training.checkpoint_content import keep_trainable
from cogalign.training.finite import FiniteGuard
from cogalign.training.progress import say
from cogalign.training.ranks import everyone
from cogalign.training.schedules import warmup_cosine
from cogalign.training.stopwatch import Stopwatch
from cogalign.training.strategies import clip, gathered
from cogalign.training.tracking import log_step


class GrpoModule(LightningModule):
    """Group relative policy optimization with the prompt computed once for each group."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: GrpoSettings,
        sampler: PromptSampler,
        read_image: Callable[[Case], Image.Image],
        question: str,
        seed: int,
        pool: RewardPool,
        sample_every: int = 0,
        spare: PromptSampler | None = None,
        rollouts: VllmRollouts | None = None,
        guard: FiniteGuard | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            loaded: the policy.
            settings: `grpo` of the recipe.
            sampler: the prompts of every step.
            read_image: the image of a case.
            question: asked where a case has no question of its own.
            seed: of the sampling.
            pool: computes the rewards.
            sample_every: optimizer steps between two tables of samples; 0 for none.
            spare: prompts that replace groups that teach nothing (`dynamic_sampling`).
            rollouts: another engine that samples; None samples in process.
            guard: skips steps whose loss or gradient is not finite; None ends the run at the first.
        """
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trainable weights only
        self.loaded, self.settings, self.sampler = loaded, settings, sampler
        self.model = loaded.model
        self.seed, self.sample_every, self.spare, self.rollouts = seed, sample_every, spare, rollouts
        self.engine = Engine(loaded, settings, read_image, question)
        self.judge = Judge(loaded, pool, settings, self.engine.questions)
        self.objective = Objective.from_settings(settings)
        self.guard = guard
        self.experience: Experience | None = None
        self._stored: list[dict[str, Any] | None] | None = None
        self.optimizer_step_count = 0
        self.rollout_count = 0
        self.tokens_seen = 0
        self.shown_metrics: dict[str, float] = {}

    # -- one optimizer step -----------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One optimizer step, with a generation before it when the last one is used up."""
        watch = Stopwatch()
        self._restore()
        encoded = self.engine.features.images_encoded
        if self.experience is None:
            self.experience = self._generation(watch)
            encoded = 0
        part = self.experience.current
        update = self._update(part, watch)
        self.experience.used += 1
        if self.experience.finished:
            self.experience = None
        times = {f"time/{phase}": seconds for phase, seconds in watch.seconds.items()}
        images = self._sum(torch.tensor([float(self.engine.features.images_encoded - encoded)], device=self.device))
        self._log({
            **part.metrics, **update, **times, "step_time": watch.total, "num_tokens": float(self.tokens_seen),
            "images_encoded": float(images[0]),
        }, part)  # fmt: skip

    def _generation(self, watch: Stopwatch) -> Experience:
        if self.rollouts is not None:
            with watch("sync"):
                self.rollouts.sync()
        with gathered(self):
            found = self._collector().collect(self.rollout_count, self.optimizer_step_count, watch)
        self.rollout_count += 1
        self.tokens_seen += self._tokens([micro for part in found.slices for micro in part.micros])
        return found

    def _collector(self) -> Collector:
        surely = self.rollouts.surely if self.rollouts is not None else at_once
        return Collector(
            self.engine, self.judge, self.settings, self.sampler, self.spare, self.seed, Ranks.of(self), surely
        )

    def _tokens(self, micros: list[MicroBatch]) -> int:
        """Tokens of prompts and completions of all ranks."""
        here = 0.0
        for micro in micros:
            made = self.engine.prompts(micro)
            prompts = made.inputs["attention_mask"].sum(1)[made.place]
            here += float(prompts.sum()) * self.settings.num_generations + float(micro.rollout.mask.sum())
        return int(self._sum(torch.tensor([here], dtype=torch.float64, device=self.device))[0])

    def _update(self, part: Slice, watch: Stopwatch) -> dict[str, float]:
        """One optimizer step on the completions of `part`."""
        optimizer: Any = self.optimizers()
        factor = learning_rate_factor(self.optimizer_step_count, self.settings)
        rate = self.settings.learning_rate * factor
        peaks = (self.settings.learning_rate, self.settings.projector_learning_rate)
        for group, peak in zip(optimizer.param_groups, peaks[: len(optimizer.param_groups)], strict=True):
            assert peak is not None  # there is a second group only with a rate of its own
            group["lr"] = peak * factor
        optimizer.zero_grad()
        normalizer = self._normalizer(part)
        loss_sum = torch.zeros(1, dtype=torch.float64, device=self.device)
        stats: LossStats | None = None
        for micro in part.micros:
            with watch("forward"):
                loss, found = self._loss(micro, normalizer)
            with watch("backward"):
                self.manual_backward(loss)
            loss_sum += loss.detach()
            stats = found if stats is None else stats + found
        assert stats is not None
        with watch("optimizer"):
            norm = clip(self, self.settings.max_grad_norm)
            if self._may_step(norm, float(loss_sum), part):
                optimizer.step()
        self.optimizer_step_count += 1
        summed = LossStats(stats.names, self._sum(stats.totals))
        loss_mean = float(self._sum(loss_sum)[0]) / self.trainer.world_size
        skipped = self.guard.metrics() if self.guard is not None else {}
        return {**summed.means(), "loss": loss_mean, "grad_norm": norm, "learning_rate": rate, **skipped}

    def _normalizer(self, part: Slice) -> float:
        """What the step's loss is divided by: it does not depend on how the step is cut into parts."""
        tokens = sum(float(micro.mask.sum()) for micro in part.micros if micro.mask is not None)
        here = torch.tensor([float(sum(map(len, part.micros))), tokens], dtype=torch.float64, device=self.device)
        completions, everywhere = self._sum(here).tolist()
        return step_normalizer(self.objective, completions, everywhere, self.trainer.world_size, tokens)

    def _loss(self, micro: MicroBatch, normalizer: float) -> tuple[Tensor, LossStats]:
        """The micro-batch's share of the step's loss."""
        logps, entropy = self.engine.policy(micro)
        assert micro.advantages is not None and micro.mask is not None
        if micro.old_logps is None and self.settings.num_iterations > 1:
            old, micro.old_logps = None, logps.detach()  # the first update's own pass is the policy that sampled
        else:
            old = micro.old_logps
        return grpo_loss(
            logps,
            old,
            micro.ref_logps,
            micro.advantages,
            micro.mask,
            self.objective,
            normalizer,
            entropy,
            micro.importance,
        )

    def _may_step(self, norm: float, loss: float, part: Slice) -> bool:
        """Whether loss and gradient are finite on all ranks; a step that is not taken counts as a step all the same.

        Args:
            norm: of the gradient, before it was clipped.
            loss: this rank's.
            part: the completions, of which a copy is kept if the step is not taken.

        Raises:
            ValueError: they are not, and no guard may skip the step, or too many steps in a row.
        """
        step = self.optimizer_step_count + 1
        if self.guard is None:
            if not math.isfinite(norm):
                raise ValueError(
                    f"grpo step {step}: the gradient's norm is {norm}, the step was not taken; "
                    "lower grpo.learning_rate, or use another precision"
                )
            return True
        taken = self.guard.judge(self.trainer, step, norm, loss, lambda: batch_of(self.loaded, part))
        if not taken:  # Lightning ends the training by its own count of steps
            counted = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            counted.increment_ready()
            counted.increment_completed()
        return taken

    # -- bookkeeping ------------------------------------------------------------------------------

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, on the device of `values`."""
        return Ranks.of(self).sum(values)

    def _log(self, metrics: dict[str, float], part: Slice) -> None:
        """One row of this optimizer step in every logger, now and then with a table of samples."""
        self.shown_metrics = metrics
        step = self.optimizer_step_count
        rows = None
        if self.sample_every and (step == 1 or step % self.sample_every == 0):
            cases = [draw.case for micro in part.micros for draw in micro.draws]
            images = [self.engine.read_image(case) for case in cases]
            texts = [text for micro in part.micros for text in decode(self.loaded, micro.rollout)]
            rows = sample_rows(cases, images, texts, self.settings.num_generations)
        log_step(self.trainer.loggers, metrics, step, rows)

    def configure_model(self) -> None:
        """Shard the blocks where the strategy asks for it."""
        configure_sharding(self.trainer, self.loaded)

    def on_fit_start(self) -> None:
        """Open the server that samples, if there is one."""
        if self.rollouts is not None:
            trainer = self.trainer
            self.engine.server = self.rollouts.open(Ranks.of(self), trainer.num_nodes, trainer.strategy.broadcast)

    def on_fit_end(self) -> None:
        """Give the model back as it was."""
        self.engine.end()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on what is trainable."""
        settings = self.settings
        groups = parameter_groups(self.loaded, settings.learning_rate, settings.projector_learning_rate)
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Trainable weights, our own counters, and the completions that are still to be used, of every rank."""
        keep_trainable(checkpoint, self)
        stored = everyone(None if self.experience is None else buffer.save(self.experience))
        checkpoint["grpo"] = {
            "optimizer_step_count": self.optimizer_step_count,
            "rollout_count": self.rollout_count,
            "tokens_seen": self.tokens_seen,
            "experience": stored,
        }
        if self.guard is not None:
            checkpoint["nonfinite"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters back; the completions wait until the ranks are known."""
        state = dict(checkpoint["grpo"])
        self._stored = state.pop("experience")
        for name, value in state.items():
            setattr(self, name, int(value))
        if self.guard is not None and "nonfinite" in checkpoint:
            self.guard.load_state_dict(checkpoint["nonfinite"])

    def _restore(self) -> None:
        """The completions of the checkpoint, cut anew where it was written by another number of ranks."""
        stored, self._stored = self._stored, None
        if stored is None:
            return
        ranks, pad = range(self.trainer.world_size), self.loaded.tokenizer.pad_token_id
        try:
            mine = recut(stored, ranks, self.settings.micro_batch, pad)[self.global_rank]
        except ValueError as error:
            if self.trainer.is_global_zero:
                say(f"note: the completions in the checkpoint are dropped and new ones sampled: {error}")
            return
        if mine is None:
            return
        self.experience = buffer.load(mine, self._collector().find, self.device)
        self.engine.renew_features()
        for part in self.experience.slices:  # in the order in which they were encoded first
            for micro in part.micros:
                self.engine.warm(micro)


def learning_rate_factor(step: int, settings: GrpoSettings) -> float:
    """Factor of the learning rate at an optimizer step (from 0): linear warm-up, then constant or cosine to zero."""
    if settings.schedule == "constant" and step >= round(settings.steps * settings.warmup_share):
        return 1.0
    return warmup_cosine(step, settings.steps, settings.warmup_share)
