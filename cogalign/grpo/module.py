"""Stage 3 as a LightningModule: sample groups, reward them, take clipped steps towards the better completions.

One `training_step` is one whole rollout: sampling, rewards, and `num_iterations` optimizer steps on
it. A checkpoint therefore never falls between a rollout and its updates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor

from cogalign.data.case import Case
from cogalign.data.collator import question_of
from cogalign.generation.hf import Completion, decode
from cogalign.generation.sampling import Rollout, SamplingSettings, sample
from cogalign.grpo.advantages import group_advantages, zero_spread_share
from cogalign.grpo.losses import LossStats, grpo_loss
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.observe import reward_metrics, rollout_metrics, sample_rows
from cogalign.grpo.rewards import score
from cogalign.grpo.scoring import completion_logps
from cogalign.models.adapt import Reference
from cogalign.models.features import shared_image_features
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, encode_prompts, to_device
from cogalign.recipe import GrpoSettings
from cogalign.training.checkpoints import keep_trainable
from cogalign.training.seeding import derive_seed
from cogalign.training.tracking import log_step


class MicroBatch:
    """Prompts that are sampled and scored together, and what came of them."""

    def __init__(self, prompt: Inputs, rollout: Rollout, completions: list[Completion]) -> None:
        self.prompt, self.rollout, self.completions = prompt, rollout, completions
        self.advantages: Tensor | None = None
        self.old_logps: Tensor | None = None
        self.ref_logps: Tensor | None = None


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
        sample_every: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trainable weights only
        self.loaded, self.settings, self.sampler = loaded, settings, sampler
        self.model = loaded.model
        self.read_image, self.question, self.seed, self.sample_every = read_image, question, seed, sample_every
        self.reference = Reference(loaded) if settings.beta > 0 else None
        self.optimizer_step_count = 0
        self.rollout_count = 0
        self.tokens_seen = 0
        self.shown_metrics: dict[str, float] = {}

    # -- sampling ---------------------------------------------------------------------------------

    def _sample(self, cases: Sequence[Case], images: Sequence[Image.Image], part: int) -> MicroBatch:
        """Completions for some prompts; randomness depends on seed, rollout, part and rank alone."""
        settings = self.settings
        questions = [question_of(case, self.question) for case in cases]
        prompt = to_device(encode_prompts(self.loaded.processor, images, questions), self.device)
        stream = derive_seed(self.seed, "rollout", self.rollout_count, part, self.global_rank)
        generator = torch.Generator(device=self.device).manual_seed(stream)
        how = SamplingSettings(
            settings.max_completion_length, settings.num_generations, settings.temperature, settings.top_p
        )
        rollout = sample(self.loaded, prompt, how, generator)
        return MicroBatch(prompt, rollout, decode(self.loaded, rollout))

    def _score_all(self, micro: MicroBatch) -> None:
        """Reference log-probabilities, and those of the sampling policy where several updates follow."""
        settings = self.settings
        if self.reference is not None:
            with self.reference.active() as model:
                micro.ref_logps = self._logps(model, micro)[0]
        if settings.num_iterations > 1:
            with torch.no_grad():
                micro.old_logps = self._logps(self.model, micro)[0]

    def _logps(self, model: Any, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        settings, rollout = self.settings, micro.rollout
        return completion_logps(
            self.loaded,
            model,
            micro.prompt,
            rollout.ids,
            settings.num_generations,
            settings.temperature,
            rollout.mask,
        )

    # -- one rollout and its updates --------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One rollout with its optimizer steps."""
        with shared_image_features(self.loaded):
            self._rollout_and_updates()

    def _rollout_and_updates(self) -> None:
        """Sample, reward, score, update, log."""
        started = time.perf_counter()
        settings = self.settings
        cases = self.sampler.step(self.rollout_count)
        images = [self.read_image(case) for case in cases]
        micros = []
        for part, first in enumerate(range(0, len(cases), settings.micro_batch)):
            chosen = slice(first, first + settings.micro_batch)
            micros.append(self._sample(cases[chosen], images[chosen], part))
        sampled = time.perf_counter()
        completions = [c for micro in micros for c in micro.completions]
        totals, single = self._reward(cases, completions)
        grouped = totals.view(-1, settings.num_generations)
        advantages = group_advantages(grouped, settings.scale_rewards).flatten().to(self.device)
        for micro, part_of in zip(micros, advantages.split([len(m.completions) for m in micros]), strict=True):
            micro.advantages = part_of
            self._score_all(micro)
        metrics = rollout_metrics(completions)
        metrics |= reward_metrics(grouped, single, list(vars(settings.reward_weights)))
        metrics["frac_reward_zero_std"] = zero_spread_share(grouped)
        self.tokens_seen += self._tokens(micros)
        self.rollout_count += 1
        for _ in range(settings.num_iterations):
            if self.optimizer_step_count >= settings.steps:
                break
            update = self._update(micros)
            now = time.perf_counter()
            times = {"step_time": now - started, "sampling_time": sampled - started, "update_time": now - sampled}
            self._log({**metrics, **update, **times, "num_tokens": float(self.tokens_seen)}, cases, images, completions)
            started = sampled = now

    def _tokens(self, micros: Sequence[MicroBatch]) -> int:
        """Tokens of prompts and completions of all ranks."""
        group = self.settings.num_generations
        here = sum(int(m.prompt["attention_mask"].sum()) * group + int(m.rollout.mask.sum()) for m in micros)
        return int(self._sum(torch.tensor([float(here)], device=self.device))[0])

    def _reward(self, cases: Sequence[Case], completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Total reward [N] and each reward [N, R] of the completions."""
        group = self.settings.num_generations
        repeated = [case for case in cases for _ in range(group)]
        columns: dict[str, Sequence[Any]] = {
            "findings": [list(case.findings) for case in repeated],
            "keywords": [case.keywords for case in repeated],
            "mask_file_name": [case.mask_file_name for case in repeated],
            "intervention": [case.intervention for case in repeated],
        }
        return score(
            [c.text for c in completions],
            columns,
            self.settings.reward_weights,
            prompts=[question_of(case, self.question) for case in repeated],
            completion_ids=[list(c.token_ids) for c in completions],
        )

    def _update(self, micros: Sequence[MicroBatch]) -> dict[str, float]:
        """One optimizer step on the rollout."""
        settings = self.settings
        optimizer: Any = self.optimizers()
        rate = settings.learning_rate * learning_rate_factor(self.optimizer_step_count, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        total = sum(len(micro.completions) for micro in micros)
        loss_sum = torch.zeros((), device=self.device)
        stats: LossStats | None = None
        for micro in micros:
            logps, entropy = self._logps(self.model, micro)
            assert micro.advantages is not None
            loss, part = grpo_loss(
                logps,
                micro.old_logps,
                micro.ref_logps,
                micro.advantages,
                micro.rollout.mask,
                settings.epsilon,
                settings.epsilon_high,
                settings.beta,
                normalizer=total,
                entropies=entropy,
            )
            self.manual_backward(loss)
            loss_sum += loss.detach()
            stats = part if stats is None else stats + part
        assert stats is not None
        trainable = [p for p in self.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trainable, settings.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise ValueError(
                f"grpo step {self.optimizer_step_count + 1}: the gradient's norm is {float(norm)}, the step was not "
                "taken; lower grpo.learning_rate, or use another precision"
            )
        optimizer.step()
        self.optimizer_step_count += 1
        summed = LossStats(stats.names, self._sum(stats.totals))
        return {**summed.means(), "loss": float(loss_sum), "grad_norm": float(norm), "learning_rate": rate}

    # -- bookkeeping ------------------------------------------------------------------------------

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks."""
        if self.trainer.world_size == 1:
            return values
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def _log(
        self,
        metrics: dict[str, float],
        cases: Sequence[Case],
        images: Sequence[Image.Image],
        completions: Sequence[Completion],
    ) -> None:
        """One row of this optimizer step in every logger, now and then with a table of samples."""
        self.shown_metrics = metrics
        step = self.optimizer_step_count
        rows = None
        if self.sample_every and (step == 1 or step % self.sample_every == 0):
            rows = sample_rows(cases, images, completions, self.settings.num_generations)
        log_step(self.trainer.loggers, metrics, step, rows)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on what is trainable."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Trainable weights and our own counters."""
        keep_trainable(checkpoint, self)
        checkpoint["grpo"] = {
            "optimizer_step_count": self.optimizer_step_count,
            "rollout_count": self.rollout_count,
            "tokens_seen": self.tokens_seen,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters back."""
        for name, value in checkpoint["grpo"].items():
            setattr(self, name, int(value))


def learning_rate_factor(step: int, settings: GrpoSettings) -> float:
    """Factor of the learning rate at an optimizer step (from 0): linear warm-up, then constant or cosine to zero."""
    warmup = max(1, round(settings.steps * settings.warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))
