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
from cogalign.training.checkpoints import FOLDER, LAST, commit
from cogalign.training.interrupt import Interrupted
from cogalign.training.interruption import Interrupt
from cogalign.training.progress import say
from cogalign.training.seeding import rng_state, set_rng_state


class ResumeCheckpoint(Callback):
    """Saves checkpoints from which a stage goes on bit for bit: every `every` optimizer steps and on interruption.

    They lie in `<folder>/checkpoints/last.ckpt`, the one before in `previous.ckpt`; each is written
    under a temporary name first. A save happens only when a batch ended with an optimizer step,
    so no half-accumulated gradient is ever lost. The states of all random generators (one set a rank)
    are in it; they are set again when training starts, before the first batch is fetched. Validation
    leaves the generators as it found them, so training does not depend on what it samples.

    Modules change their state in `training_step`: what they do in `on_train_batch_end` comes after
    the save, and random numbers drawn in `on_train_start` come after the generators were set.

    Args:
        folder: the stage's folder.
        every: optimizer steps between two checkpoints.
        interrupt: the flag that a signal sets; None if signals are not handled.
    """

    def __init__(self, folder: Path, every: int, interrupt: Interrupt | None = None) -> None:
        self.folder = folder / FOLDER
        self.every = every
        self.interrupt = interrupt
        self._seen: int | None = None
        self._loaded: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._stopped = ""

    def state_dict(self) -> dict[str, Any]:
        """The random generators of all ranks."""
        states: list[Any] = [rng_state()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, rng_state())
        return {"rng": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the generators' states until training starts."""
        self._loaded = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the number of optimizer steps, whatever counts them."""
        checkpoint["cogalign_step"] = optimizer_steps(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the generators: the loader's iterator, which draws a number, has been made by now."""
        self._seen = optimizer_steps(trainer, pl_module)
        if self._loaded is not None:
            states = self._loaded["rng"]
            if len(states) == trainer.world_size:
                set_rng_state(states[trainer.global_rank])
            elif trainer.is_global_zero:
                say(f"note: the checkpoint was written by {len(states)} processes, these are {trainer.world_size}: "
                    "training goes on, but not bit for bit")  # fmt: skip
            self._loaded = None
        for loader in _loaders(trainer.val_dataloaders):
            # Else each iterator draws its workers' seed from the generator that training uses.
            if loader.generator is None:
                loader.generator = torch.Generator()

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
        if due or stop:
            self.save(trainer, step)
        if stop and self.interrupt is not None:
            # A validation that is due is still done: the checkpoint counts it as done.
            self._stopped = f"{self.interrupt.signal_name}; step {step} is saved"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before the next step if a signal asked for it."""
        if self._stopped:
            raise Interrupted(self._stopped)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step too: the next stage is not to start."""
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
        temporary = self.folder / f".{LAST}.tmp"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                commit(temporary, self.folder)
        except (OSError, RuntimeError) as error:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
            raise self._explained(error, step) from error

    def _explained(self, error: OSError | RuntimeError, step: int) -> OSError | RuntimeError:
        """A full disk as one clear message; any other error as it is."""
        if not is_disk_full(error):
            return error
        free = shutil.disk_usage(self.folder).free
        kept = "the checkpoint before it is kept" if (self.folder / LAST).exists() else "there is none before it"
        return OSError(
            errno.ENOSPC,
            f"disk full while writing the checkpoint of step {step} ({free / 2**20:.0f} MiB free); {kept}; "
            "make room and run the same command again",
            str(self.folder / LAST),
        )


def _loaders(loaders: Any) -> list[DataLoader[Any]]:
    """The DataLoaders among what Lightning holds: one, several in a list or mapping, or none."""
    found = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
    found = found if isinstance(found, list | tuple) else [found]
    return [loader for loader in found if isinstance(loader, DataLoader)]


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch's file writer raises its own error over the system's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
