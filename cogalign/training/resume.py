"""The Lightning callback that saves checkpoints from which a stage goes on bit for bit, and stops on a signal."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cogalign.training.callbacks import optimizer_steps
from cogalign.training.checkpoint_content import STEP, load_by_name, name_optimizers, restored_names
from cogalign.training.checkpoints import (
    FOLDER,
    clean,
    commit,
    discard,
    later_than,
    latest_checkpoint,
    path_of,
    temporary_of,
)
from cogalign.training.disk import DiskError, is_disk_full
from cogalign.training.interrupt import Interrupted
from cogalign.training.interruption import Interrupt
from cogalign.training.metrics_file import CsvLogger
from cogalign.training.progress import say
from cogalign.training.ranks import everyone
from cogalign.training.seeding import derive_seed, rng_state, seed_everything, set_rng_state
from cogalign.training.tracking import CHECKPOINT_KEY, current_id


class ResumeCheckpoint(Callback):
    """Saves checkpoints from which a stage goes on bit for bit: every `every` optimizer steps and on interruption.

    `checkpoints` tells where they lie, `checkpoint_content` what is in them. A save happens only when a batch ended
    with an optimizer step, so no half-accumulated gradient is ever lost. The states of all random generators (one set
    a rank) are in it; they are set again when training starts, before the first batch is fetched. On another number
    of ranks each rank draws anew, all else goes on as it was. Validation leaves the generators as it found them, so
    training does not depend on what it samples.

    A validation that a killed run still owed is the module's business (`validation.owes_validation`); the checkpoint of
    the last step is written after its validation, since nothing would train after it.

    Modules change their state, and log the row of a step, in `training_step` or `optimizer_step`: what they do in
    `on_train_batch_end` comes after the save, and random numbers drawn in `on_train_start` come after the generators
    were set.

    Args:
        folder: the stage's folder.
        every: optimizer steps between two checkpoints.
        interrupt: the flag that a signal sets; None if signals are not handled.
        keep: checkpoints that stay.
    """

    def __init__(self, folder: Path, every: int, interrupt: Interrupt | None = None, keep: int = 2) -> None:
        self.folder, self.every, self.interrupt, self.keep = folder, every, interrupt, keep
        self._seen: int | None = None
        self._damaged: list[Path] = []
        self._loaded: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._stopped = ""
        self._put_off: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The random generators of all ranks."""
        return {"rng": everyone(rng_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the generators' states until training starts."""
        self._loaded = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the optimizer steps, whatever counts them, and the wandb run; bring the optimizers to their form."""
        checkpoint[STEP] = optimizer_steps(trainer, pl_module)
        checkpoint[CHECKPOINT_KEY] = current_id(self.folder) or ""
        name_optimizers(checkpoint, pl_module, trainer.optimizers)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the weights under the names that they have here."""
        restored_names(checkpoint, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the checkpoint is loaded: clear what a killed process left, and let the optimizers load by name."""
        if trainer.is_global_zero:
            clean(self.folder)
        for optimizer in trainer.optimizers:
            load_by_name(optimizer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the generators: the loader's iterator, which draws a number, has been made by now.

        Raises:
            RuntimeError: the ranks have read different checkpoints.
        """
        self._seen = optimizer_steps(trainer, pl_module)
        steps = everyone(self._seen)
        if len(set(steps)) > 1:
            raise RuntimeError(
                f"{self.folder / FOLDER}: the processes go on after different steps ({steps}, by rank): do all machines "
                "see the same folder?"
            )
        if trainer.is_global_zero:
            self._damaged = later_than(self.folder, self._seen)
            for logger in _csv_loggers(trainer):
                logger.go_on_after(self._seen)
        if self._loaded is not None:
            self._set_generators(trainer, self._loaded["rng"])
            self._loaded = None
        for loader in _loaders(trainer.val_dataloaders):
            # Else each iterator draws its workers' seed from the generator that training uses.
            if loader.generator is None:
                loader.generator = torch.Generator()

    def _set_generators(self, trainer: Trainer, states: list[dict[str, Any]]) -> None:
        if len(states) == trainer.world_size:
            set_rng_state(states[trainer.global_rank])
            return
        seed_everything(derive_seed(torch.initial_seed(), trainer.world_size, self._seen, trainer.global_rank))
        if trainer.is_global_zero:
            say(f"note: the checkpoint was written by {len(states)} processes, these are {trainer.world_size}: random "
                "numbers are drawn anew, all else goes on as it was")  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due, and end the training if a signal asked for it."""
        step = optimizer_steps(trainer, pl_module)
        if step == self._seen:
            return  # gradients are being accumulated
        stop = self.interrupt is not None and self.interrupt.asked(trainer)
        due = self._seen is None or step // self.every > self._seen // self.every
        self._seen = step
        if due and not stop and step == trainer.max_steps:
            self._put_off = (
                step  # a validation may follow, and nothing trains after this checkpoint, so none could be owed
            )
        elif due or stop:
            self.save(trainer, step)
        if stop and self.interrupt is not None:
            # A validation that is due is still done: the checkpoint counts it as done.
            self._stopped = f"{self.interrupt.signal_name}; step {step} is saved"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before the next step if a signal asked for it."""
        if self._stopped:
            raise Interrupted(self._stopped)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step; stop after it too: the next stage is not to start."""
        if self._put_off is not None:
            self.save(trainer, self._put_off)
            self._put_off = None
        if self._stopped:
            raise Interrupted(self._stopped)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the generators."""
        self._before_validation = rng_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the generators back."""
        if self._before_validation is not None:
            set_rng_state(self._before_validation)
            self._before_validation = None

    def save(self, trainer: Trainer, step: int) -> None:
        """Write the newest checkpoint.

        Raises:
            OSError: it could not be written; the checkpoint before is kept. A full disk is named as such.
        """
        path = path_of(self.folder, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if trainer.is_global_zero:
                for logger in _csv_loggers(trainer):
                    logger.flush()
            trainer.save_checkpoint(temporary_of(path))
            if trainer.is_global_zero:
                while self._damaged:  # else they would be counted among those that stay
                    discard(self._damaged.pop())
                commit(path, self.keep)
        except (OSError, RuntimeError) as error:
            if trainer.is_global_zero:
                discard(temporary_of(path))
            raise self._explained(error, path, step) from error

    def _explained(self, error: OSError | RuntimeError, path: Path, step: int) -> OSError | RuntimeError:
        """A full disk as one clear message; any other error as it is."""
        if not is_disk_full(error):
            return error
        free = shutil.disk_usage(path.parent).free
        before = latest_checkpoint(self.folder)
        kept = "there is none before it" if before is None else f"the checkpoint before it is kept ({before.name})"
        return DiskError(  # `guarded` leaves it as it is
            errno.ENOSPC,
            f"disk full while writing the checkpoint of step {step} ({free / 2**20:.0f} MiB free); {kept}; "
            "make room and run the same command again",
            path,
        )


def _csv_loggers(trainer: Trainer) -> list[CsvLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CsvLogger)]


def _loaders(loaders: Any) -> list[DataLoader[Any]]:
    """The DataLoaders among what Lightning holds: one, several in a list or mapping, or none."""
    found = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
    found = found if isinstance(found, list | tuple) else [found]
    return [loader for loader in found if isinstance(loader, DataLoader)]
