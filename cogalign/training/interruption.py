"""The Lightning callback that turns signals into a flag: nothing is cut in two, the step is finished and saved."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cogalign.training import interrupt
from cogalign.training.interrupt import Interrupted
from cogalign.training.progress import say


class Interrupt(Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 set a flag while a Trainer fits; `ResumeCheckpoint` acts on it at the end of a step.

    Nothing is saved inside a signal handler, where a collective could be cut in two. A second signal
    ends the training at once; the last checkpoint on disk is then where the next run goes on.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._handlers: dict[int, Any] = {}

    def asked(self, trainer: Trainer) -> bool:
        """Whether any rank got a signal (all ranks call this, all get the same answer)."""
        mine = bool(self.signal_name)
        if trainer.world_size > 1:
            mine = bool(trainer.strategy.reduce_boolean_decision(mine, all=False))
        if mine and not self.signal_name:
            self.signal_name = "another process was stopped"
        return mine

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals (after Lightning has set its own handlers)."""
        self.signal_name = ""
        self._handlers = interrupt.install(self._handle)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal_name:
            raise Interrupted(f"{name} again; steps since the last checkpoint are lost")
        self.signal_name = name
        say(f"{name}: this step is finished and saved, then the run stops (again: at once)")

    def _restore(self) -> None:
        interrupt.restore(self._handlers)
        self._handlers = {}
