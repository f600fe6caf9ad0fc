"""Room on the disk and the right to write, looked at before a stage starts and not after a night of work."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from cogalign.training.checkpoints import FOLDER

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
            OSError: it cannot be written, or there is too little room.
        """
        if not trainer.is_global_zero:
            return
        require_writable(self.folder)
        trainable = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
        require_room(self.folder, STATES * trainable, self.keep)


def require_writable(folder: Path) -> None:
    """Write a file into a folder and take it away again; the folder is made if it is not there.

    Raises:
        OSError: it cannot be written.
    """
    probe = folder / f".write-test.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, "there is no room for a single file") from error
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise OSError(f"{folder} cannot be written ({reason}); give another folder with --out") from error
    finally:
        _remove(probe)


def require_room(folder: Path, checkpoint: int, keep: int) -> None:
    """See whether the checkpoints of a stage fit on the disk; while one is written, one more than are kept is there.

    Args:
        folder: the stage's folder; checkpoints that it holds make room for new ones.
        checkpoint: bytes of one.
        keep: checkpoints that are kept.

    Raises:
        OSError: they do not fit.
    """
    there = sum(path.stat().st_size for path in (folder / FOLDER).rglob("*") if path.is_file())
    needed = (keep + 1) * checkpoint - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _full(
            folder,
            f"{size(free)} free, but its checkpoints take {size(needed)} more ({keep + 1} of {size(checkpoint)}: "
            f"trainer.keep_checkpoints is {keep}, and one is being written)",
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch's file writer raises its own error over the system's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def size(count: float) -> str:
    """Bytes as people write them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _full(folder: Path, reason: str) -> OSError:
    return OSError(
        errno.ENOSPC, f"disk full: {folder}: {reason}; make room and run the same command again", str(folder)
    )


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
