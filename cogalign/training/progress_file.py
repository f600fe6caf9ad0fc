"""`progress.json`: how far a stage is, for those who look on from outside (`cogalign status`)."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cogalign.training.atomic import write_bytes
from cogalign.training.progress import say
from cogalign.training.stage_file import read_stage_file

Unit = Literal["steps", "cases", "images"]
FILE_NAME = "progress.json"
WRITE_EVERY = 2.0
"""Seconds between two writes, at least."""
_warned: set[Path] = set()


@dataclass(frozen=True)
class StageProgress:
    """What `progress.json` holds."""

    step: int
    """Steps (cases, images) done, those of earlier lives included."""
    total: int | None
    """All of them; None if not known."""
    seconds_per_step: float | None
    """Seconds a step in this life of the stage; None before its first step is done."""
    time: str
    """When this was written; ISO 8601, UTC."""
    unit: Unit = "steps"
    restarts: int = 0
    """How often the stage was taken up again, by SLURM or by hand."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step, as things stood at `time`; None if that cannot be said."""
        if self.total is None or self.seconds_per_step is None:
            return None
        return max(0, self.total - self.step) * self.seconds_per_step


def write_progress(
    folder: Path, step: int, total: int | None, seconds_per_step: float | None, unit: Unit = "steps"
) -> None:
    """Write `progress.json` as a whole file; a disk that cannot be written costs a warning, once a folder.

    Args:
        folder: the stage's folder.
        step: how many are done.
        total: how many there are; None if not known.
        seconds_per_step: seconds for one; None if not known yet.
        unit: what is counted.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = StageProgress(step, total, seconds_per_step, now, unit, restarts(folder))
    # Not flushed to disk as other files are: after a power cut nobody needs it, and a flush can take seconds.
    try:
        text = json.dumps(asdict(content), indent=2) + "\n"
        write_bytes(folder / FILE_NAME, text.encode("utf-8"), flush=False)
    except OSError as error:
        if folder not in _warned:
            _warned.add(folder)
            say(f"warning: {folder / FILE_NAME} cannot be written ({error.strerror or error}); the work goes on")


def read_progress(folder: Path) -> StageProgress | None:
    """Read a stage's `progress.json`; None if there is none, or none that can be read."""
    try:
        return StageProgress(**json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def restarts(folder: Path) -> int:
    """How often a stage was taken up again: by SLURM's count or that of `stage.json`, whichever is larger.

    SLURM's count misses what was started by hand; `stage.json` misses a restart in which the stage was not reached.
    """
    by_slurm = os.environ.get("SLURM_RESTART_COUNT", "")
    known = read_stage_file(folder)
    return max(int(by_slurm) if by_slurm.isdigit() else 0, known.resumed if known else 0)


class ProgressFile:
    """Writes `progress.json` as steps are done: at once in the beginning and at the end, else every two seconds.

    Args:
        folder: the stage's folder.
        total: all steps; None if not known.
        unit: what is counted.
        before: steps that earlier lives of the stage have done.
    """

    def __init__(self, folder: Path, total: int | None, unit: Unit = "steps", before: int = 0) -> None:
        self.folder, self.total, self.unit, self.before = folder, total, unit, before
        self._start = self._last = time.monotonic()
        self._written = before
        write_progress(folder, before, total, None, unit)

    def update(self, step: int, *, last: bool = False) -> None:
        """Note that `step` steps are done; with `last` the file is written in any case."""
        now = time.monotonic()
        if not last and (now - self._last < WRITE_EVERY or step == self._written):
            return
        done = step - self.before
        seconds = (now - self._start) / done if done > 0 else None
        write_progress(self.folder, step, self.total, seconds, self.unit)
        self._last, self._written = now, step
