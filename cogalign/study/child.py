"""One run of a study as a process of its own: what it says goes into a log and, with its name before it, on the screen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from cogalign.training.file_lock import FileLock
from cogalign.training.interrupt import Interrupted
from cogalign.training.progress import say
from cogalign.training.stage_file import now

COMMAND = (sys.executable, "-m", "cogalign", "run")
LOOK_EVERY = 0.5
"""Seconds between two looks into the log."""
LAST_LINES = 12
"""Lines of a failed run that are shown again."""


class Log:
    """The log of a run: each try is added to it; a thread shows what comes in.

    Args:
        path: the file.
        label: put before each line on the screen.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label
        path.parent.mkdir(parents=True, exist_ok=True)
        self.start = path.stat().st_size if path.exists() else 0
        self._shown = self.start
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"log of {label}", daemon=True)

    def follow(self) -> None:
        """Begin to show what comes in."""
        self._thread.start()

    def close(self) -> None:
        """Show the rest and end."""
        self._over.set()
        self._thread.join()

    def last_lines(self) -> list[str]:
        """The last lines of this try."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            lines = file.read().decode("utf-8", "replace").splitlines()
        return [line for line in lines if line.strip()][-LAST_LINES:]

    def _follow(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self._show(whole=False)
        self._show(whole=True)

    def _show(self, whole: bool) -> None:
        """Show what is new, up to the last end of a line unless the `whole` rest is wanted."""
        with open(self.path, "rb") as file:
            file.seek(self._shown)
            new = file.read()
        if not whole:
            new = new[: new.rfind(b"\n") + 1]
        self._shown += len(new)
        for line in new.decode("utf-8", "replace").splitlines():
            if line.strip():
                say(f"{self.label} | {line}")


def run_child(recipe: Path, log: Log, claim: FileLock) -> int:
    """`cogalign run RECIPE` in a process of its own; returns its exit code.

    A signal to this process tells the child to stop; it saves, and its end is waited for. A second Ctrl-C kills it. If
    this process is killed, the child goes on to its end, and holds the claim until then.

    Args:
        recipe: the recipe's file.
        log: where its output goes.
        claim: the lock of the run.

    Raises:
        Interrupted: a signal came, and the child has ended.
    """
    with open(log.path, "ab") as file:
        file.write(f"---- {now()} cogalign run {recipe}\n".encode())
        file.flush()
        log.follow()  # before the child, so that nothing stands between its start and the wait
        process: subprocess.Popen[bytes] | None = None
        try:
            process = subprocess.Popen(
                [*COMMAND, str(recipe)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                pass_fds=(claim.fileno(),),
                start_new_session=True,  # a Ctrl-C of the terminal reaches it through this process alone
            )
            return process.wait()
        except (Interrupted, KeyboardInterrupt):
            if process is not None:
                _stop(process, log.label)
            raise
        except BaseException:
            if process is not None:
                _kill(process)
            raise
        finally:
            log.close()


def _stop(process: subprocess.Popen[bytes], label: str) -> None:
    """Let a child save and end; a second Ctrl-C ends it at once."""
    say(f"study: stopping {label}; it saves first (a second Ctrl-C ends it at once)")
    process.send_signal(signal.SIGTERM)
    try:
        process.wait()
    except (Interrupted, KeyboardInterrupt):
        _kill(process)
        raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a child and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
