"""The segmenter as a LightningModule: Dice + BCE, two learning rates, the best weights by validation Dice kept on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from cogalign.models.segmenter import SegmenterConfig
from cogalign.recipe import SegmenterSettings
from cogalign.segmenter.metrics import overlap
from cogalign.training.atomic import write_bytes, write_json
from cogalign.training.schedules import warmup_cosine
from cogalign.training.tracking import log_step

BEST, HISTORY = "best.safetensors", "validations.json"


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - soft Dice over the batch (Milletari et al. 2016, arXiv:1606.04797, with sums in place of squares).

    Args:
        logits: [n, 1, H, W].
        truth: same shape, zeros and ones.

    The sums run over the whole batch: an image without a lesion has no Dice of its own.
    """
    probability = torch.sigmoid(logits.float())
    return 1 - (2 * (probability * truth).sum() + 1.0) / (probability.sum() + truth.sum() + 1.0)


def segmentation_loss(logits: Tensor, truth: Tensor, bce_weight: float) -> Tensor:
    """Weighted sum of binary cross-entropy (a mean over pixels) and `dice_loss`; same shapes as there."""
    bce = functional.binary_cross_entropy_with_logits(logits.float(), truth)
    return bce_weight * bce + (1 - bce_weight) * dice_loss(logits, truth)


class SegmenterModule(LightningModule):
    """Training of a net for `steps` optimizer steps.

    Args:
        network: from `cogalign.models.segmenter.build`.
        config: its configuration (normalisation).
        settings: rates and losses.
        steps: optimizer steps of the whole training.
        steps_per_epoch: to tell the epoch of a step.
        folder: where the best weights and the validations are written.
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
    ) -> None:
        super().__init__()
        self.network = network
        self.settings, self.steps, self.steps_per_epoch, self.folder = settings, steps, steps_per_epoch, folder
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.history: dict[int, dict[str, float]] = {}
        self.shown_metrics: dict[str, float] = {}
        self._validation: list[Tensor] = []
        self._loss = float("nan")
        self._grad_norm = self._rate = float("nan")
        self._clock = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, 1, side, side] of images uint8 [n, 3, side, side]."""
        pixels = (images.float() / 255.0 - self.mean) / self.std
        return self.network(pixels.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of images and masks."""
        images, truth = batch
        loss = segmentation_loss(self(images), truth, self.settings.bce_weight)
        self.trainer.datamodule.consumed += 1  # type: ignore[attr-defined]
        self._loss = float(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Note the norm of the gradient before it is clipped, and the decoder's learning rate."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self._grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        self._rate = optimizer.param_groups[-1]["lr"]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One row of metrics for each optimizer step."""
        now = time.perf_counter()
        self.shown_metrics = {
            "loss": self._loss,
            "grad_norm": self._grad_norm,
            "learning_rate": self._rate,
            "step_time": now - self._clock,
        }
        log_step(self.trainer.loggers, self.shown_metrics, self.trainer.global_step)
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
        """Read the validations up to this step, and do the one that is due at it if it is missing."""
        step = self.trainer.global_step
        self.history = {done: row for done, row in self.read_history().items() if done <= step}
        if step and (step % self.interval == 0 or step == self.steps) and step not in self.history:
            self._validate_now()

    def _validate_now(self) -> None:
        """One pass over the validation images outside Lightning's loop."""
        self.eval()
        self.on_validation_epoch_start()
        with torch.no_grad():
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
        """Log the means; keep the weights if no validation before had so good a Dice."""
        dice, iou, loss = torch.cat(self._validation).mean(0).tolist()
        step = self.trainer.global_step
        best = max((row["dice"] for row in self.history.values()), default=-1.0)
        self.history[step] = {"epoch": step / self.steps_per_epoch, "dice": dice, "iou": iou, "loss": loss}
        if self.trainer.is_global_zero:
            if dice > best:
                weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
                notes = {"step": str(step), "dice": repr(dice)}
                write_bytes(self.folder / BEST, save(weights, metadata=notes))
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
        """Put the best weights into the net; returns the optimizer step at which they were."""
        with safe_open(self.folder / BEST, framework="pt") as file:
            step = int(file.metadata()["step"])
        self.network.load_state_dict(load_file(self.folder / BEST))
        return step

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
