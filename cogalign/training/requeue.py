"""Batch jobs that are stopped by a signal: how a process asks the job's script to put the job back into the queue.

The job's script names a file in `COGALIGN_REQUEUE_FILE`. A process that a signal has stopped writes it and ends with
exit code 0, so that `srun --kill-on-bad-exit` lets the other ranks close what they have open. The script finds the
file and calls `scontrol requeue`; Python never does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from cogalign.training.atomic import write_text
from cogalign.training.stage_file import now

VARIABLE = "COGALIGN_REQUEUE_FILE"
EXIT_INTERRUPTED = 130
LOOK_EVERY = 1.0
"""Seconds between two looks of a rank for the file of another one."""
LEAVE_AFTER = 45.0
"""Seconds after which a rank ends that stands in a call which the others will never join (`srun --wait` may be 60)."""


def requeue_file() -> Path | None:
    """The file of this job; None outside of a job that can be put back into the queue."""
    name = os.environ.get(VARIABLE, "")
    return Path(name) if name else None


def was_requested() -> bool:
    """Whether a rank of this job, this one or another, was stopped by a signal."""
    path = requeue_file()
    return path is not None and path.is_file()


def requested(signal_name: str, step: int | None = None) -> bool:
    """Ask for the job to be put back into the queue; any rank may, the first one to write tells why.

    Args:
        signal_name: what stopped the process, for the job's log.
        step: the optimizer step that is saved, if there is one.

    Returns:
        False outside of a job that can be put back: nothing was written.

    Raises:
        OSError: the file cannot be written.
    """
    path = requeue_file()
    if path is None:
        return False
    if path.is_file():
        return True
    rank = os.environ.get("SLURM_PROCID", "0")
    content = {"signal": signal_name, "step": step, "rank": int(rank) if rank.isdigit() else rank, "time": now()}
    write_text(path, json.dumps(content) + "\n")
    return True


def exit_code(stopped: BaseException) -> int:
    """The exit code of a command that a signal stopped; in a batch job the requeue file is written first.

    Args:
        stopped: `Interrupted` or `KeyboardInterrupt`; its text names the signal and the step that is saved.

    Returns:
        0 in a job that will be put back into the queue, else 130.
    """
    text = str(stopped)
    step = re.search(r"\bstep (\d+) is saved", text)
    try:
        asked = requested(re.split(r"[;,\s]", text)[0] or "SIGINT", int(step[1]) if step else None)
    except OSError as error:
        print(f"cogalign: the job cannot ask for its return to the queue: {error}", file=sys.stderr, flush=True)
        asked = False
    return 0 if asked else EXIT_INTERRUPTED


def ranks() -> int:
    """Processes of this job's step, as the launcher tells; 1 where none does."""
    found = (os.environ.get(name, "") for name in ("SLURM_NTASKS", "WORLD_SIZE"))
    return next((int(number) for number in found if number.isdigit()), 1)


class Watcher:
    """Looks in a thread whether another rank was stopped, and then stops this one as the signal would have.

    Without it a signal to one rank alone, outside of a training, would leave the others waiting.

    Args:
        stopping: whether this process has noticed a signal.
        look_every: seconds between two looks.
        leave_after: seconds after which the process ends at once if it still notices nothing: it stands in a
            collective call that has no partner any more, so nothing is lost.
    """

    def __init__(self, stopping: Callable[[], bool], look_every: float, leave_after: float) -> None:
        self.stopping, self.look_every, self.leave_after = stopping, look_every, leave_after
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="requeue watcher", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self.look_every):
            if self.stopping():
                return
            if was_requested():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not self._ended.wait(self.leave_after) and not self.stopping():
                    os._exit(0)
                return


def watcher(stopping: Callable[[], bool]) -> Watcher | None:
    """A started `Watcher` in a batch job of several ranks; None where there is nobody to look for."""
    if requeue_file() is None or ranks() < 2:
        return None
    found = Watcher(stopping, LOOK_EVERY, LEAVE_AFTER)
    found.start()
    return found
