"""Stage 1 as a LightningModule: next-token loss on the answer, LoRA or full weights.

The gradient of an optimizer step is that of the mean loss over all answer tokens of the step, whatever ranks and
forward passes they lie on: each pass gives the gradient of its sum, and the step divides by the number of tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional

from cogalign.models.adapt import parameter_groups
from cogalign.models.blocks import configure_sharding
from cogalign.models.inputs import padding_is_behind
from cogalign.models.load import LoadedModel
from cogalign.models.merged import fused_adapter
from cogalign.recipe import SftSettings
from cogalign.sft.passes import realign
from cogalign.sft.short import computes_short, short_loss
from cogalign.training.checkpoint_content import STEP, keep_trainable
from cogalign.training.finite import FiniteGuard, NonFinite
from cogalign.training.schedules import warmup_cosine
from cogalign.training.strategies import clip, gathered, owns_gradients
from cogalign.training.tracking import log_step
from cogalign.training.validation import owes_validation, validate_now


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token loss over the answer's tokens (paper, eq. 2).

    Args:
        logits: [B, L, V].
        labels: [B, L], -100 where no loss is taken.
    """
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)


def answer_tokens(labels: Tensor) -> int:
    """Tokens over which `answer_loss` is a mean; labels [B, L]."""
    return int((labels[:, 1:] != -100).sum())


class SftModule(LightningModule):
    """Supervised fine-tuning; `trainer.max_steps` optimizer steps with a cosine schedule."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: SftSettings,
        write_samples: Callable[[], list[dict[str, Any]]] | None = None,
        guard: FiniteGuard | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the trainable weights only
        self.loaded = loaded
        self.model = loaded.model
        self.settings = settings
        self.write_samples, self.guard = write_samples, guard
        self.tokens_seen = 0
        self.eval_loss: float | None = None
        self.shown_metrics: dict[str, float] = {}
        self._sums = (0.0, 0, 0)  # of this rank in the step so far: loss, answer tokens, all tokens
        self._loss_of_step = float("nan")
        self._suspect: dict[str, Tensor] = {}
        self._validation: list[tuple[float, int]] = []
        self._grad_norm = self._rate = float("nan")
        self._clock = 0.0

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.loaded.core.config._attn_implementation == "sdpa" and padding_is_behind(batch["attention_mask"]):
            del inputs["attention_mask"]  # then torch's causal kernel runs, which leaves half of the scores out
        # only the answers' logits are computed: the vocabulary is the widest part of the model
        if computes_short(self.loaded):
            return short_loss(self.loaded, inputs, labels)
        keep = int((labels != -100).any(0).nonzero()[0]) - 1
        with fused_adapter(self.model):
            logits = self.model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] - keep).logits
        return answer_loss(logits, labels[:, keep:])

    def configure_model(self) -> None:
        """Shard the blocks where the strategy asks for it."""
        configure_sharding(self.trainer, self.loaded)

    @property
    def alone(self) -> bool:
        """Whether one forward pass of one process is all of an optimizer step."""
        return self.trainer.world_size * self.trainer.accumulate_grad_batches == 1

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch as it goes into the backward pass: see `_weight`."""
        mean = self._loss(batch)
        tokens, value = answer_tokens(batch["labels"]), float(mean.detach())
        loss, answers, seen = self._sums
        self._sums = loss + value * tokens, answers + tokens, seen + int(batch["attention_mask"].sum())
        if math.isfinite(loss):  # else the batch that did it is kept already
            self._suspect = batch
        self.trainer.datamodule.advance(len(batch["labels"]))  # type: ignore[attr-defined]
        return mean if self.alone else mean * self._weight(tokens)

    def _weight(self, tokens: int) -> float:
        """Factor on the mean loss of a pass: its tokens; the step divides by those of all ranks and passes.

        DeepSpeed keeps the gradients to itself, so the division comes first there, by what is known: the tokens of
        all ranks in this pass.
        """
        if not owns_gradients(self.trainer):
            return float(tokens)
        return tokens * self.trainer.world_size / float(self._over_ranks(float(tokens))[0])

    def _over_ranks(self, *values: float) -> Tensor:
        """Sums over all ranks, float64."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.trainer.world_size == 1:
            return mine
        summed: Tensor = self.trainer.strategy.reduce(mine.to(self.device), reduce_op="sum")
        return summed.cpu()

    @property
    def _accumulates(self) -> bool:
        """Whether more passes of this step follow; DeepSpeed lets Lightning call the hooks of a step after every pass."""
        return bool(self.trainer.fit_loop._should_accumulate())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Make the gradient that of the mean over the step's tokens; note that mean and the learning rate."""
        if self._accumulates:
            return
        loss, answers, seen = self._over_ranks(*self._sums).tolist()
        self._loss_of_step = loss / answers
        self.tokens_seen += int(seen)
        self._rate = optimizer.param_groups[0]["lr"]
        if not self.alone and not owns_gradients(self.trainer):
            # Lightning has divided by the passes, and the strategy by the ranks
            factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / answers
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient and note its norm before; drop it if it or the loss is not finite: then nothing moves.

        Raises:
            NonFinite: too many such steps in a row.
        """
        if self._accumulates:
            return
        owned = owns_gradients(self.trainer)
        self._grad_norm = float("nan") if owned else clip(self, gradient_clip_val or math.inf)
        mine, answers, _ = self._sums
        self._sums = (0.0, 0, 0)
        if self.guard is None:
            return
        step, norm = self.trainer.global_step + 1, 0.0 if owned else self._grad_norm
        finite = self.guard.judge(self.trainer, step, norm, mine / answers, self._kept)
        self._suspect = {}
        if finite:
            return
        if owned:
            raise NonFinite(f"sft step {step}: under {type(self.trainer.strategy).__name__} no step can be skipped")
        for parameter in self.parameters():
            parameter.grad = None

    def _kept(self) -> dict[str, Any]:
        """What is saved of a step that is skipped: all its cases, and the tensors of the batch that did it."""
        return {"cases": self.trainer.datamodule.last_cases(), "batch": self._suspect}  # type: ignore[attr-defined]

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take the step, and log its row of metrics before its checkpoint is written: else a kill between loses the row."""
        super().optimizer_step(*arguments, **options)
        if self._accumulates:
            return
        now = time.perf_counter()
        self.shown_metrics = {
            "loss": self._loss_of_step,
            "grad_norm": self._grad_norm,
            "learning_rate": self._rate,
            "num_tokens": float(self.tokens_seen),
            "step_time": now - self._clock,
            **(self.guard.metrics() if self.guard is not None else {}),
        }
        log_step(self.trainer.loggers, self.shown_metrics, self.trainer.global_step + 1)
        self._clock = now

    def on_train_start(self) -> None:
        """Do the validation that a killed run still owed (its checkpoint came before it); start the clock."""
        if owes_validation(self.trainer, "eval_loss"):
            validate_now(self.trainer)
        self._clock = time.perf_counter()

    def on_validation_epoch_start(self) -> None:
        """Forget the losses of the validation before."""
        self._validation = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss of a validation batch."""
        tokens = answer_tokens(batch["labels"])
        self._validation.append((float(self._loss(batch)) * tokens, tokens))

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss (a mean over tokens) and what the model writes for a few cases.

        Every rank has validated all batches: there are few, and a sharded model wants all ranks in every pass.
        """
        sums = torch.tensor(self._validation, dtype=torch.float64).sum(0)
        self.eval_loss = float(sums[0] / sums[1])
        with gathered(self):
            samples = self.write_samples() if self.write_samples and self.trainer.is_global_zero else None
        log_step(self.trainer.loggers, {"eval_loss": self.eval_loss}, self.trainer.global_step, samples)
        self._clock = time.perf_counter()

    def configure_optimizers(self) -> Any:
        """AdamW on what is trainable; warm-up and cosine decay by optimizer step."""
        settings = self.settings
        groups = parameter_groups(self.loaded, settings.learning_rate, settings.projector_learning_rate)
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, settings.steps, settings.warmup_share)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Trainable weights only, and the counts."""
        keep_trainable(checkpoint, self)
        checkpoint["tokens_seen"] = self.tokens_seen
        if self.guard is not None:
            checkpoint["nonfinite"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counts back, as this run's number of passes counts."""
        self.tokens_seen = int(checkpoint["tokens_seen"])
        if self.guard is not None and "nonfinite" in checkpoint:
            self.guard.load_state_dict(checkpoint["nonfinite"])
        if "loops" in checkpoint:
            realign(checkpoint["loops"], int(checkpoint[STEP]), self.trainer.accumulate_grad_batches)
