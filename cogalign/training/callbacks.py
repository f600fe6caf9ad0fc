"""The Lightning callback that shows how far a training is; `resume` and `interruption` hold the others."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cogalign.training.progress import LINE_EVERY, is_terminal, plain_line, rich_bar, say
from cogalign.training.progress_file import ProgressFile

SHOWN = ("loss", "reward", "kl")


def optimizer_steps(trainer: Trainer, module: LightningModule) -> int:
    """Optimizer steps done so far.

    Lightning's `global_step` counts calls of any optimizer; a module with manual optimization keeps
    its own count in `optimizer_step_count`.
    """
    return int(getattr(module, "optimizer_step_count", trainer.global_step))


class Progress(Callback):
    """How far the training is: a rich bar on a terminal, else a plain line every ten seconds.

    Args:
        description: what is done, e.g. `sft`.
        total: optimizer steps of the whole stage.
        folder: the stage's folder, for `progress.json`; None to write none.

    The values shown are those of `module.shown_metrics` (a mapping) if the module has it, else those
    that were logged with `self.log`: `loss`, `reward`, `kl`.
    """

    def __init__(self, description: str, total: int, folder: Path | None = None) -> None:
        self.description = description
        self.total = total
        self.folder = folder
        self._file: ProgressFile | None = None
        self._bar: Any = None
        self._task: Any = None
        self._first = self._printed = 0
        self._start = self._last_line = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step from which training goes on."""
        if not trainer.is_global_zero:
            return
        self._first = self._printed = optimizer_steps(trainer, pl_module)
        self._start = self._last_line = time.monotonic()
        if self.folder is not None:
            self._file = ProgressFile(self.folder, self.total, "steps", self._first)
        if is_terminal():
            self._bar = rich_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, completed=self._first, extra="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or print a line if ten seconds have passed; write the file if two have."""
        if not trainer.is_global_zero:
            return
        step = optimizer_steps(trainer, pl_module)
        if self._file is not None:
            self._file.update(step)
        values = self._values(trainer, pl_module)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, extra=values)
        elif time.monotonic() - self._last_line >= LINE_EVERY and step > self._printed:
            self._line(step, values)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line."""
        step = optimizer_steps(trainer, pl_module) if trainer.is_global_zero else 0
        if self._bar is None and step > self._printed:
            self._line(step, self._values(trainer, pl_module))
        self._close(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on its own line."""
        self._close(trainer, pl_module)

    def _line(self, step: int, values: str) -> None:
        seconds = time.monotonic() - self._start
        say(plain_line(self.description, step, self.total, seconds, values, before=self._first))
        self._last_line, self._printed = time.monotonic(), step

    @staticmethod
    def _values(trainer: Trainer, module: LightningModule) -> str:
        metrics: Mapping[str, Any] = getattr(module, "shown_metrics", None) or trainer.callback_metrics
        return "  ".join(f"{name} {float(metrics[name]):.3g}" for name in SHOWN if name in metrics)

    def _close(self, trainer: Trainer, module: LightningModule) -> None:
        if self._file is not None:
            self._file.update(optimizer_steps(trainer, module), last=True)
            self._file = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
