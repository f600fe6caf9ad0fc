"""The segmenter as a LightningModule: Dice + BCE, two learning rates, the best weights by validation Dice kept on disk."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cogalign.models.segmenter import SegmenterConfig
from cogalign.recipe import SegmenterSettings
from cogalign.segmenter.best import best_of, best_path, drop_old, only_best
from cogalign.segmenter.losses import segmentation_loss, summed_over_ranks
from cogalign.segmenter.metrics import overlap
from cogalign.training.atomic import write_bytes, write_json
from cogalign.training.finite import FiniteGuard
from cogalign.training.schedules import warmup_cosine
from cogalign.training.strategies import clip
from cogalign.training.tracking import log_step

HISTORY = "validations.json"


class SegmenterModule(LightningModule):
    """Training of a net for `steps` optimizer steps.

    Args:
        network: from `cogalign.models.segmenter.build`.
        config: its configuration (normalisation).
        settings: rates and losses.
        steps: optimizer steps of the whole training.
        steps_per_epoch: to tell the epoch of a step.
        folder: where the best weights and the validations are written.
        guard: judges every step; None takes all.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        config: SegmenterConfig,
        settings: SegmenterSettings,
        steps: int,
        steps_per_epoch: int,
        folder: Path,
        guard: FiniteGuard | None = None,
    ) -> None:
        super().__init__()
        self.network, self.guard = network, guard
        self.settings, self.steps, self.steps_per_epoch, self.folder = settings, steps, steps_per_epoch, folder
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.history: dict[int, dict[str, float]] = {}
        self._saved: dict[int, dict[str, float]] = {}  # the validations that the checkpoint knows
        self.shown_metrics: dict[str, float] = {}
        self._validation: list[Tensor] = []
        self._loss = float("nan")
        self._batch: tuple[Tensor, ...] = ()
        self._grad_norm = self._rate = float("nan")
        self._clock = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, 1, side, side] of images uint8 [n, 3, side, side]."""
        pixels = (images.float() / 255.0 - self.mean) / self.std
        return self.network(pixels.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of images and masks."""
        images, truth = batch
        loss = segmentation_loss(self(images), truth, self.settings.bce_weight, self._over_ranks)
        self.trainer.datamodule.advance(len(images))  # type: ignore[attr-defined]
        self._loss, self._batch = float(loss.detach()), batch
        return loss

    def _over_ranks(self, sums: Tensor) -> Tensor:
        strategy, ranks = self.trainer.strategy, self.trainer.world_size
        if ranks == 1:
            return sums
        return summed_over_ranks(sums, ranks, lambda mine: strategy.reduce(mine, reduce_op="sum"))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Note the decoder's learning rate."""
        self._rate = optimizer.param_groups[-1]["lr"]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient and note its norm before; drop it if it or the loss is not finite: then nothing moves.

        Raises:
            NonFinite: too many such steps in a row.
        """
        self._grad_norm = clip(self, gradient_clip_val or math.inf)
        step = self.trainer.global_step + 1
        if self.guard is None or self.guard.judge(self.trainer, step, self._grad_norm, self._loss, self._kept):
            return
        for parameter in self.parameters():
            parameter.grad = None

    def _kept(self) -> dict[str, Any]:
        """What is saved of a step that is skipped."""
        images, truth = self._batch
        return {"cases": self.trainer.datamodule.last_cases(), "images": images, "masks": truth}  # type: ignore[attr-defined]

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take the step, and log its row of metrics before its checkpoint is written: else a kill between loses the row."""
        super().optimizer_step(*arguments, **options)
        now = time.perf_counter()
        loss = self._loss
        if self.trainer.world_size > 1:
            loss = float(self.trainer.strategy.reduce(torch.tensor(loss, device=self.device), reduce_op="mean"))
        self.shown_metrics = {
            "loss": loss,
            "grad_norm": self._grad_norm,
            "learning_rate": self._rate,
            "step_time": now - self._clock,
            **(self.guard.metrics() if self.guard is not None else {}),
        }
        log_step(self.trainer.loggers, self.shown_metrics, self.trainer.global_step + 1)
        self._clock = now

    def on_train_start(self) -> None:
        """Start the clock; do the validation that an interrupted run still owed (its checkpoint came before it)."""
        self.catch_up()
        self._clock = time.perf_counter()

    def on_train_end(self) -> None:
        """Validate after the last step, where the interval does not divide the steps; the net is on its device still."""
        step = self.trainer.global_step
        if step == self.steps and step not in self.history:
            self._validate_now()

    @property
    def interval(self) -> int:
        """Optimizer steps between two validations; the last step has one whatever the interval is."""
        return min(self.settings.validate_every, self.settings.epochs) * self.steps_per_epoch

    def catch_up(self) -> None:
        """Read the validations up to this step, and do the one that is due at it if it is missing.

        A run that was killed may have written some of later steps than its checkpoint: they are done again.
        """
        step = self.trainer.global_step
        found = self.trainer.strategy.broadcast({**self._saved, **self.read_history()})
        self.history = {done: row for done, row in sorted(found.items()) if done <= step}
        if step and (step % self.interval == 0 or step == self.steps) and step not in self.history:
            self._validate_now()

    def _validate_now(self) -> None:
        """One pass over the validation images outside Lightning's loop."""
        self.eval()
        self.on_validation_epoch_start()
        with torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            for index, batch in enumerate(self.trainer.datamodule.val_dataloader()):  # type: ignore[attr-defined]
                self.validation_step(tuple(part.to(self.device) for part in batch), index)
        self.on_validation_epoch_end()
        self.train()

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self._validation = []

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Loss, Dice and IoU of a validation batch."""
        images, truth = batch
        logits = self(images)
        dice, iou = overlap(logits > 0, truth > 0.5)
        loss = segmentation_loss(logits, truth, self.settings.bce_weight)
        self._validation.append(torch.stack([dice, iou, loss.expand_as(dice)], dim=1).double().cpu())

    def on_validation_epoch_end(self) -> None:
        """Log the means; keep the weights if no validation before had so good a Dice.

        All ranks have validated all images; what the first one found counts, whose weights are kept.
        """
        dice, iou, loss = self.trainer.strategy.broadcast(torch.cat(self._validation).mean(0).tolist())
        step = self.trainer.global_step
        best = best_of(self.history)
        self.history[step] = {"epoch": step / self.steps_per_epoch, "dice": dice, "iou": iou, "loss": loss}
        if self.trainer.is_global_zero:
            if best_of(self.history) != best:
                weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
                notes = {"validation": f"step {step}, Dice {dice!r}"}  # one: safetensors writes several in any order
                write_bytes(best_path(self.folder, step), save(weights, metadata=notes))
                drop_old(self.folder, self.history)
            write_json(self.folder / HISTORY, self.history)
        log_step(self.trainer.loggers, {"eval_dice": dice, "eval_iou": iou, "eval_loss": loss}, step)
        self._clock = time.perf_counter()

    def read_history(self) -> dict[int, dict[str, float]]:
        """The validations that are written in the folder, by step; none if there is no such file."""
        path = self.folder / HISTORY
        if not path.is_file():
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(step): row for step, row in content.items()}

    def load_best(self) -> int:
        """Put the best weights into the net, delete the others; returns the optimizer step at which they were.

        Raises:
            FileNotFoundError: they are gone.
        """
        step, path = only_best(self.folder, self.read_history())
        self.network.load_state_dict(load_file(path))
        return step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The validations so far (all weights, and the running means of normalisation layers, are in it already)."""
        checkpoint["validations"] = self.history
        checkpoint["samples_a_step"] = self._samples_a_step()
        if self.guard is not None:
            checkpoint["nonfinite"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the validations and counts back.

        Raises:
            ValueError: the steps of the checkpoint had another number of images, so that an epoch had other steps.
        """
        before, now = int(checkpoint["samples_a_step"]), self._samples_a_step()
        if before != now:
            raise ValueError(
                f"segmenter.batch_size: {self.settings.batch_size} on {self.trainer.world_size} devices make {now} images "
                f"a step, and the checkpoint in {self.folder} was made with {before}; wanted devices and a batch_size "
                f"whose product is {before}"
            )
        self._saved = checkpoint["validations"]
        if self.guard is not None and "nonfinite" in checkpoint:
            self.guard.load_state_dict(checkpoint["nonfinite"])

    def _samples_a_step(self) -> int:
        return self.settings.batch_size * self.trainer.world_size

    def configure_optimizers(self) -> Any:
        """AdamW with a smaller rate for the encoder; warm-up and cosine decay by optimizer step."""
        settings = self.settings
        encoder = {id(parameter) for parameter in self.network.encoder.parameters()}  # type: ignore[union-attr]
        groups = [
            {
                "params": [p for p in self.network.parameters() if id(p) in encoder],
                "lr": settings.learning_rate * settings.encoder_factor,
            },
            {"params": [p for p in self.network.parameters() if id(p) not in encoder], "lr": settings.learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.steps, settings.warmup_share)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
