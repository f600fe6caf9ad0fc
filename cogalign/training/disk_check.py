"""The callback that looks at the disk before a training starts, and not after a night of work."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from cogalign.training.checkpoints import FOLDER
from cogalign.training.disk import no_room, require_writable, size

STATES = 3
"""A trainable weight in a checkpoint: itself and AdamW's two moments."""


class DiskCheck(Callback):
    """Before training: can the stage's folder be written, and does it have room for the checkpoints?

    Args:
        folder: the stage's folder.
        keep: checkpoints that are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look.

        Raises:
            DiskError: it cannot be written, or there is too little room.
        """
        if not trainer.is_global_zero:
            return
        require_writable(self.folder)
        trainable = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
        require_room(self.folder, STATES * trainable, self.keep)


def require_room(folder: Path, checkpoint: int, keep: int) -> None:
    """See whether the checkpoints of a stage fit on the disk; while one is written, one more than are kept is there.

    Args:
        folder: the stage's folder; checkpoints that it holds make room for new ones.
        checkpoint: bytes of one.
        keep: checkpoints that are kept.

    Raises:
        DiskError: they do not fit.
    """
    there = sum(path.stat().st_size for path in (folder / FOLDER).rglob("*") if path.is_file())
    needed = (keep + 1) * checkpoint - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise no_room(
            folder,
            f"{size(free)} free, but its checkpoints take {size(needed)} more ({keep + 1} of {size(checkpoint)}: "
            f"trainer.keep_checkpoints is {keep}, and one is being written)",
        )
