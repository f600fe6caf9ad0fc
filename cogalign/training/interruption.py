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

    Nothing is saved inside a signal handler, where a collective could be cut in two. More SIGTERM and SIGUSR1 do
    nothing more; a Ctrl-C after the first signal ends the training at once, and the last checkpoint on disk is then
    where the next run goes on. A signal after the last step lets the stage end and stops the run before the next one.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._heeded = False
        self._handlers: dict[int, Any] = {}

    def asked(self, trainer: Trainer) -> bool:
        """Whether any rank got a signal (all ranks call this, all get the same answer)."""
        mine = bool(self.signal_name)
        if trainer.world_size > 1:
            mine = bool(trainer.strategy.reduce_boolean_decision(mine, all=False))
        if mine and not self.signal_name:
            self._note("another process was stopped")
        self._heeded = mine
        return mine

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals (after Lightning has set its own handlers)."""
        self.signal_name, self._heeded = "", False
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
            if number == signal.SIGINT:
                raise Interrupted(f"{name} again; steps since the last checkpoint are lost")
            return
        self._note(name)
        say(f"{name}: this step is finished and saved, then the run stops (Ctrl-C: at once)")

    def _note(self, name: str) -> None:
        self.signal_name = name
        interrupt.noted(name)

    def _restore(self) -> None:
        if self.signal_name and not self._heeded:
            interrupt.unheeded(self.signal_name)
        interrupt.restore(self._handlers)
        self._handlers = {}
