"""Stage 1 as a LightningModule: next-token loss on the answer, LoRA or full weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional

from cogalign.models.inputs import padding_is_behind
from cogalign.models.load import LoadedModel
from cogalign.models.merged import fused_adapter
from cogalign.recipe import SftSettings
from cogalign.training.checkpoints import keep_trainable
from cogalign.training.schedules import warmup_cosine
from cogalign.training.tracking import log_step


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token loss over the answer's tokens (paper, eq. 2).

    Args:
        logits: [B, L, V].
        labels: [B, L], -100 where no loss is taken.
    """
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)


class SftModule(LightningModule):
    """Supervised fine-tuning; `trainer.max_steps` optimizer steps with a cosine schedule."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: SftSettings,
        write_samples: Callable[[], list[dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the trainable weights only
        self.loaded = loaded
        self.model = loaded.model
        self.settings = settings
        self.write_samples = write_samples
        self.tokens_seen = 0
        self.eval_loss: float | None = None
        self.shown_metrics: dict[str, float] = {}
        self._losses: list[float] = []
        self._validation: list[tuple[float, int]] = []
        self._grad_norm = self._rate = float("nan")
        self._clock, self._logged = 0.0, 0

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.loaded.core.config._attn_implementation == "sdpa" and padding_is_behind(batch["attention_mask"]):
            del inputs["attention_mask"]  # then torch's causal kernel runs, which leaves half of the scores out
        # only the answers' logits are computed: the vocabulary is the widest part of the model
        keep = int((labels != -100).any(0).nonzero()[0]) - 1
        with fused_adapter(self.model):
            logits = self.model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] - keep).logits
        return answer_loss(logits, labels[:, keep:])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss = self._loss(batch)
        self.tokens_seen += int(batch["attention_mask"].sum()) * self.trainer.world_size
        self.trainer.datamodule.consumed += 1  # type: ignore[attr-defined]
        self._losses.append(float(loss.detach()))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Note the norm of the gradient before it is clipped, and the learning rate of this step."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self._grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One row of metrics for each optimizer step."""
        step = self.trainer.global_step
        if step == self._logged:
            return  # gradients are being accumulated
        now = time.perf_counter()
        self.shown_metrics = {
            "loss": sum(self._losses) / max(1, len(self._losses)),
            "grad_norm": self._grad_norm,
            "learning_rate": self._rate,
            "num_tokens": float(self.tokens_seen),
            "step_time": now - self._clock,
        }
        log_step(self.trainer.loggers, self.shown_metrics, step)
        self._losses, self._clock, self._logged = [], now, step

    def on_train_start(self) -> None:
        """Start the clock."""
        self._clock, self._logged = time.perf_counter(), self.trainer.global_step

    def on_validation_epoch_start(self) -> None:
        """Forget the losses of the validation before."""
        self._validation = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss of a validation batch."""
        tokens = int((batch["labels"] != -100).sum())
        self._validation.append((float(self._loss(batch)) * tokens, tokens))

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss (a mean over tokens) and what the model writes for a few cases."""
        sums = torch.tensor(self._validation, dtype=torch.float64).sum(0)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        self.eval_loss = float(sums[0] / sums[1])
        samples = self.write_samples() if self.write_samples and self.trainer.is_global_zero else None
        log_step(self.trainer.loggers, {"eval_loss": self.eval_loss}, self.trainer.global_step, samples)
        self._clock = time.perf_counter()

    def configure_optimizers(self) -> Any:
        """AdamW on what is trainable; warm-up and cosine decay by optimizer step."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        settings = self.settings
        optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, settings.steps, settings.warmup_share)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Trainable weights and the token count only."""
        keep_trainable(checkpoint, self)
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the token count back."""
        self.tokens_seen = int(checkpoint["tokens_seen"])
