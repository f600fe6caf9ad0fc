"""The callbacks with which every training stage fits: progress, checkpoints to go on from, signals, watchdog."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback

from cogalign.recipe import Recipe
from cogalign.training.callbacks import Progress
from cogalign.training.disk_check import DiskCheck
from cogalign.training.interruption import Interrupt
from cogalign.training.resume import ResumeCheckpoint
from cogalign.training.watchdog import Watchdog


def fit_callbacks(recipe: Recipe, folder: Path, stage: str, steps: int, checkpoint_every: int) -> list[Callback]:
    """The callbacks of a training stage, in the order in which they must be called.

    Args:
        recipe: `trainer` is read.
        folder: the stage's folder.
        stage: its name.
        steps: optimizer steps of the whole stage.
        checkpoint_every: optimizer steps between two checkpoints.
    """
    interrupt = Interrupt()
    return [
        DiskCheck(folder, recipe.trainer.keep_checkpoints),
        Progress(stage, steps, folder),
        ResumeCheckpoint(folder, checkpoint_every, interrupt, recipe.trainer.keep_checkpoints),
        interrupt,
        # the last one: after an error it may end the process
        Watchdog(folder, stage, recipe.trainer.timeout),
    ]
