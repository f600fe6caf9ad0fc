"""A training of a few steps in milliseconds with everything that a resume must restore: for the tests of callbacks."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from cogalign.recipe import Recipe, TrainerSettings
from cogalign.training.callbacks import Progress
from cogalign.training.checkpoint_content import keep_trainable
from cogalign.training.interruption import Interrupt
from cogalign.training.resume import ResumeCheckpoint
from cogalign.training.seeding import seed_everything
from cogalign.training.trainer import build_trainer, fit_or_resume

STEPS = 6


class Noisy(Dataset[torch.Tensor]):
    """Items that depend on all three generators, as augmentation does."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(4) + index + random.random() + float(np.random.random())


class Batches(Sampler[list[int]]):
    def __init__(self, total: int, start: int) -> None:
        self.total, self.start = total, start

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.start, self.total):
            yield [(index * 3 + offset) % 64 for offset in range(3)]


class Data(LightningDataModule):
    def __init__(self, total: int, validate: bool = False) -> None:
        super().__init__()
        self.total, self.validate, self.consumed = total, validate, 0

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed = state_dict["consumed"]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Noisy(), batch_sampler=Batches(self.total, self.consumed))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return DataLoader(Noisy(), batch_size=2) if self.validate else []


class Automatic(LightningModule):
    """Dropout, a frozen layer, AdamW and a schedule; automatic optimization as in SFT."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.net = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 1))
        self.at_step: Any = None
        self.validated_at: list[int] = []

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.net(self.frozen(batch)) - batch.mean()).square().mean()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.trainer.datamodule.consumed += 1  # type: ignore[attr-defined]
        if self.at_step is not None:
            self.at_step(self)
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validated_at.append(self.global_step)
        self.log("eval_loss", self.loss(batch) + torch.rand(()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trainable(checkpoint, self)


class Manual(Automatic):
    """Manual optimization with its own count and several optimizer steps a batch, as in GRPO."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_step_count = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:  # type: ignore[override]
        self.trainer.datamodule.consumed += 1  # type: ignore[attr-defined]
        optimizer: Any = self.optimizers()
        for _ in range(2):
            if self.at_step is not None:
                self.at_step(self)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch + torch.rand(())))
            optimizer.step()
            self.optimizer_step_count += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), lr=0.05)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["optimizer_step_count"] = self.optimizer_step_count

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.optimizer_step_count = checkpoint["optimizer_step_count"]


def train(
    folder: Path,
    kind: type[Automatic] = Automatic,
    *,
    at_step: Callable[[Automatic], None] | None = None,
    every: int = 100,
    accumulate: int = 1,
    validate: bool = False,
    interrupt: bool = True,
    keep: int = 2,
) -> Automatic:
    """Train for STEPS batches-worth of steps (or go on with it) and give the module back."""
    seed_everything(7)
    module = kind()
    module.at_step = at_step
    stop = Interrupt()
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate} if accumulate > 1 else {}
    trainer = build_trainer(
        Recipe(trainer=TrainerSettings(accelerator="cpu")),
        folder=folder,
        max_steps=STEPS if kind is Automatic else -1,
        callbacks=[
            Progress("tiny", STEPS, folder),
            stop,
            ResumeCheckpoint(folder, every, stop if interrupt else None, keep),
        ],
        val_check_interval=2 if validate else None,
        check_val_every_n_epoch=None if validate else 1,
        **options,
    )
    fit_or_resume(trainer, module, Data(STEPS * accumulate, validate), folder, "tiny")
    return module


def signal_at(call: int, number: int = signal.SIGTERM) -> Callable[[Automatic], None]:
    """Send a signal to this process in the call-th training step (from 1)."""
    calls = iter(range(1, 1000))

    def at_step(module: Automatic) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), number)

    return at_step


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
