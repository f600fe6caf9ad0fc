"""The ranks that Lightning started on this machine, and the one that started them: none outlives the others.

Lightning's own observer kills the main process without a word, also while it is saving what can be saved.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cogalign.training.ending import EXIT_LOST, GO_ON, end_process
from cogalign.training.heartbeat import PULSE
from cogalign.training.standing import read_standing

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LOOK_EVERY = 0.5
GRACE = 5.0
"""Seconds that the main process has to notice by itself that a rank ended: mostly it has the same error."""
LAST_GRACE = 60.0
"""Seconds that it has to close everything after an error."""


class Fitting(Protocol):
    """The callback that watches while a Trainer fits."""

    folder: Path
    stage: str


fitting: Fitting | None = None
"""Set while a Trainer fits."""
closing = False
"""Whether a fit has ended, well or not, and none began since."""
_children: dict[int, subprocess.Popen[Any]] = {}
_first = 0
"""This process's rank among those of all machines."""
_launcher: Any = None
_folder = Path()
_thread: threading.Thread | None = None
PARENT = os.getppid()


def watch_local_ranks(trainer: Trainer, folder: Path) -> None:
    """Watch the ranks that Lightning starts on this machine, from now to the end of this process.

    Args:
        trainer: its launcher is asked for them.
        folder: the stage's folder.
    """
    global _launcher, _folder, _first, _thread, closing
    _launcher, _folder, _first, closing = trainer.strategy.launcher, folder, trainer.global_rank, False
    is_child = int(os.environ.get("LOCAL_RANK", 0)) > 0 and "SLURM_PROCID" not in os.environ
    if _thread is None and (is_child or hasattr(_launcher, "procs")):
        _thread = threading.Thread(target=_watch_main if is_child else _watch_ranks, daemon=True, name="local ranks")
        _thread.start()


def lost() -> str | None:
    """What ended a rank of this machine, in words; None if all live."""
    for rank, process in list(_children.items()):
        if process.poll():
            return f"rank {rank} (process {process.pid}) {described(process.returncode)}"
    return None


def described(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    memory = ", mostly because memory ran out (see dmesg)" if name == "SIGKILL" else ""
    return f"was killed by {name}{memory}"


def _watch_ranks() -> None:
    """In the main process: end it when a rank is gone and it does not notice."""
    first: float | None = None
    while True:
        time.sleep(LOOK_EVERY)
        _take_over()
        said = lost()
        if said is None:
            continue
        first = first or time.monotonic()
        if time.monotonic() - first > (LAST_GRACE if closing else GRACE):
            folder = fitting.folder if fitting is not None else _folder
            end_process(folder, f"{folder.name}: {said}; {GO_ON}", EXIT_LOST)


def _take_over() -> None:
    """Take the children from Lightning's observer, which then has nothing to watch and ends."""
    processes = getattr(_launcher, "procs", [])
    while processes:
        _children[_first + len(_children) + 1] = processes.pop(0)


def _watch_main() -> None:
    """In the others: end when the main process is gone, and tell of it if it could not."""
    while os.getppid() == PARENT:
        time.sleep(LOOK_EVERY)
    told = fitting is None
    if fitting is not None:
        main = read_standing(fitting.folder, 0)
        told = main is None or main.state in ("failed", "ended") or int(os.environ["LOCAL_RANK"]) != 1
        message = f"{fitting.stage} step {PULSE.step}: rank 0 was killed; {GO_ON}"
    end_process(_folder, None if told else message, EXIT_LOST)
