"""Around a fit: the local ranks are watched, and errors of libraries become a message that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cogalign.training.disk import file_behind, unwritable
from cogalign.training.ending import GO_ON
from cogalign.training.local_ranks import watch_local_ranks

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)?:? ?([\d, ]+)\) (?:is killed by signal: (\w+)|exited unexpectedly)"
)
CAUGHT = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)")


@contextmanager
def guarded(trainer: Trainer, folder: Path, stage: str) -> Iterator[None]:
    """Inside the block a Trainer fits.

    Args:
        trainer: it is about to start its ranks.
        folder: the stage's folder.
        stage: its name.

    Raises:
        ValueError, OSError: what a library's error meant, in one line.
    """
    watch_local_ranks(trainer, folder)
    try:
        yield
    except Exception as error:
        better = explained(error, folder, stage)
        if better is None:
            raise
        raise better from error


def explained(error: Exception, folder: Path, stage: str) -> Exception | None:
    """What an error means and what helps; None if it speaks for itself.

    Args:
        error: from a fit.
        folder: the stage's folder.
        stage: its name.
    """
    text = str(error)
    if found := KILLED.search(text):
        how = f"was killed by signal {found[2]}" if found[2] else "ended without a word"
        return ChildProcessError(
            f"{stage}: a process that reads the data (process {found[1]}) {how}, mostly because memory ran out (see "
            f"dmesg); lower {stage}.workers or {stage}.batch_size; {GO_ON}"
        )
    if CAUGHT.search(text):
        return ValueError(f"{stage}: {last_message(text)}; {GO_ON}")
    if "OutOfMemoryError" in type(error).__name__:
        return ValueError(
            f"{stage}: the GPU's memory ran out ({text.splitlines()[0][:160]}); lower the batch size, or set "
            f"trainer.activation_checkpointing to true; {GO_ON}"
        )
    return unwritable(error, str(file_behind(error) or folder), folder, GO_ON)


def last_message(text: str) -> str:
    """The message of the error in a worker's traceback, without the traceback."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith((" ", "\t"))]
    return re.sub(r"^[\w.]+: ", "", lines[-1]) if lines else text
