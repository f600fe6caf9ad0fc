"""Checkpoints from which an interrupted stage goes on: where they lie, which one is whole, how one comes and goes.

`<stage>/checkpoints/step-00000012.ckpt` is a file, or with `trainer.sharded_checkpoints` a folder of that name, into
which every rank has written its part. Both are written under a temporary name (`.step-00000012.ckpt.tmp`), flushed to
disk and renamed by `commit`. A folder also holds `COMPLETE`, written last, with the size of every other file of it.

The newest `trainer.keep_checkpoints` stay. `latest_checkpoint` gives the newest that is whole: a file is read from end
to end and its checksums are compared, a folder's files are compared with `COMPLETE`. What a checkpoint holds is
written down in `checkpoint_content`.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cogalign.training.atomic import write_json
from cogalign.training.checkpoint_content import META, WANTED
from cogalign.training.errors import first_line
from cogalign.training.launched import is_main_process
from cogalign.training.progress import say

FOLDER = "checkpoints"
COMPLETE = "COMPLETE"
NAME = re.compile(r"step-(\d{8,})\.ckpt")
LEFTOVER = re.compile(r"\.step-\d{8,}\.ckpt\.(tmp|old)")
UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)
OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""Errors that say nothing about a file's content: a checkpoint must not be given up for them."""


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint straight to its file and flushes it to disk.

    Lightning's own way builds the whole file in memory first, then in the system's temporary folder.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError, RuntimeError: it cannot be written; torch hides the reason in a RuntimeError's context.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint; a folder that ranks of fsdp2 have written is put together."""
        if Path(path).is_dir():
            from cogalign.training.consolidate import read_sharded

            return read_sharded(Path(path))
        content: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        return content


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of an optimizer step in a stage's folder."""
    return folder / FOLDER / f"step-{step:08d}.ckpt"


def temporary_of(path: Path) -> Path:
    """Where a checkpoint is written before it gets its name; the same on all ranks."""
    return path.with_name(f".{path.name}.tmp")


def commit(path: Path, keep: int) -> None:
    """Give a fully written checkpoint its name and delete those that are too old. One rank does this, after a barrier.

    An old one that cannot be deleted is a warning only: the new one is there.

    Args:
        path: from `path_of`; what was written lies at `temporary_of(path)`, as a file or as a folder.
        keep: checkpoints that stay.

    Raises:
        OSError: nothing was renamed; the checkpoints before are as they were.
    """
    temporary = temporary_of(path)
    if temporary.is_dir():
        _seal(temporary)
    if path.is_dir():  # a damaged one of this step: os.replace does not replace a folder that holds something
        discard(path)
    elif path.exists() and temporary.is_dir():
        path.unlink()
    os.replace(temporary, path)
    _flush(path.parent)
    for old in [other for other in _by_step(path.parent) if step_of(other) <= step_of(path)][keep:]:
        try:
            discard(old)
        except OSError as error:
            say(f"warning: {old} is not needed any more and could not be deleted ({error.strerror or error})")


def steps_of(folder: Path) -> list[int]:
    """The steps of all checkpoints of a stage, the newest first, damaged ones among them."""
    return [step_of(path) for path in _by_step(folder / FOLDER)]


def later_than(folder: Path, step: int) -> list[Path]:
    """Checkpoints of later steps than the one from which a stage goes on: they are damaged."""
    return [path for path in _by_step(folder / FOLDER) if step_of(path) > step]


def clean(folder: Path) -> None:
    """Remove what a killed process has left half written in a stage's checkpoint folder. One rank does this."""
    for path in _entries(folder / FOLDER):
        if LEFTOVER.fullmatch(path.name):
            discard(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a stage that is whole; None if there is none.

    Args:
        folder: the stage's folder.

    Damaged ones (a machine that lost power, a full quota) are named in a message with what is taken instead; they
    stay where they are until the next one is written.

    Raises:
        OSError: one cannot be read for a reason that is not its own (memory, rights, the network).
    """
    damaged: list[str] = []
    for path in _by_step(folder / FOLDER):
        reason = damage(path)
        if reason is None:
            _tell(damaged, f"going back to {path}")
            return path
        damaged.append(f"{path} is damaged ({reason})")
    _tell(damaged, "there is none before it: the stage starts anew")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole.

    Raises:
        OSError: that cannot be said: it cannot be read for a reason that is not its own.
    """
    try:
        if path.is_dir():
            return _damaged_folder(path)
        content = read(path)
        missing = [name for name in WANTED if name not in content]
        if missing:
            return f"it has no {', '.join(missing)}"
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # reads all of it: a lost page of a tensor shows in its checksum
        return None if broken is None else f"checksum of {broken}"
    except UNREADABLE as error:
        number = _system_error(error)
        if number in OF_THE_MACHINE:
            raise OSError(
                number, f"{os.strerror(number)}: the checkpoint could not be looked at, so nothing is started without it; "
                "see to it and run the same command again", str(path)
            ) from error  # fmt: skip
        # torch's first sentence; the rest asks for a bug report
        return first_line(error).split(". ")[0].rstrip(".")[:120]


def _system_error(error: BaseException) -> int | None:
    """The system's number of an error; torch tells it in the text of a RuntimeError: `... Cannot allocate memory (12)`."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"unable to (?:mmap|open).*\((\d+)\)", str(error))
    return int(found[1]) if found else None


def read(path: Path) -> dict[str, Any]:
    """Content of a checkpoint on the CPU; of a folder what its ranks have in common, without weights and optimizer.

    A folder of DeepSpeed's own form has nothing that can be read without pickle: it gives nothing.

    Raises:
        OSError, RuntimeError, ValueError: it cannot be read, or is no checkpoint.
    """
    file = path / META if path.is_dir() else path
    if path.is_dir() and not file.exists():
        return {}
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} and no checkpoint")
    return content


def step_of(path: Path) -> int:
    """Optimizer steps that were done when a checkpoint was written.

    Raises:
        ValueError: it has not the name of a checkpoint.
    """
    found = NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path}: no checkpoint's name, which is step- and at least 8 digits")
    return int(found[1])


def _damaged_folder(path: Path) -> str | None:
    """What a sharded checkpoint lacks by the sizes in its `COMPLETE`."""
    mark = path / COMPLETE
    if not mark.is_file():
        return f"it has no {COMPLETE}: its writing was cut off"
    read(path)
    for name, size in json.loads(mark.read_text(encoding="utf-8")).items():
        file = path / name
        found = file.stat().st_size if file.is_file() else -1
        if found != size:
            return f"{name} has {found} bytes and should have {size}" if found >= 0 else f"{name} is missing"
    return None


def _seal(folder: Path) -> None:
    """Flush a folder's files to disk and note their sizes in `COMPLETE`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)
    for path in files:
        _flush(path)
    write_json(folder / COMPLETE, {str(path.relative_to(folder)): path.stat().st_size for path in files})
    _flush(folder)


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk; file systems that cannot do so for folders are left alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Delete a checkpoint or half of one; a folder gets a leftover's name first, so that half of one is never taken for a whole."""
    if path.is_dir() and not path.is_symlink():
        if NAME.fullmatch(path.name):
            path = path.rename(path.with_name(f".{path.name}.old"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _by_step(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest first."""
    found = [(int(match[1]), path) for path in _entries(folder) if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _tell(damaged: list[str], then: str) -> None:
    if damaged and is_main_process():
        say(f"warning: {'; '.join(damaged)}; {then}")
