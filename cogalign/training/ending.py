"""The end of a process that cannot end by itself: told, written down, its children killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cogalign.training.progress import say
from cogalign.training.stage_file import mark_failed

GO_ON = "the same command goes on after the last checkpoint"
EXIT_STALLED = 124
"""Exit code of a run that the watchdog ended, as of `timeout`."""
EXIT_LOST = 1
"""Exit code of a rank that ends because another one did."""
TRACKING_SECONDS = 10.0
"""Time that wandb gets to write what it has."""
_once = threading.Lock()


def end_process(folder: Path, message: str | None, code: int) -> NoReturn:
    """End this process at once: no `finally`, no exit handlers, which would wait for ranks that never come.

    Args:
        folder: the stage's folder.
        message: told on standard error and written into `stage.json`; None: another rank does that.
        code: exit code.
    """
    with _once:  # never released: the first call is the one that counts
        if message is not None:
            say(f"cogalign: error: {message}")
            _record(folder, message)
        _bounded(_close_tracking, TRACKING_SECONDS)
        kill_descendants()
        for stream in (sys.stdout, sys.stderr):
            _bounded(stream.flush, 1.0)
        os._exit(code)


def _record(folder: Path, message: str) -> None:
    """Let `stage.json` say that the stage failed; a disk that takes no file is no further error."""
    try:
        mark_failed(folder, message)
    except OSError as error:
        say(f"warning: {folder / 'stage.json'} could not be written ({error})")


def descendants(pid: int) -> list[int]:
    """The processes below one, the nearest first; none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found[1:]


def kill_descendants() -> None:
    """Kill every process that this one and its children started: data workers, reward workers, servers, local ranks."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it may have ended
            os.kill(pid, signal.SIGKILL)


def _close_tracking() -> None:
    if "cogalign.training.tracking" in sys.modules:
        from cogalign.training.tracking import finish_tracking

        finish_tracking(failed=True)


def _bounded(function: Callable[[], object], seconds: float) -> None:
    """Call a function that may hang, and go on after some seconds whatever it does."""

    def call() -> None:
        with contextlib.suppress(BaseException):  # nothing of this may keep the process from ending
            function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
