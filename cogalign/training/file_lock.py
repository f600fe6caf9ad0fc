"""Locks that several commands take on files of a run folder, also from different machines of a cluster."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cogalign.training.interrupt import check

LOCKS = ".locks"
"""Folder of a run's locks."""
POLL = 0.2
"""Seconds between two tries of who waits for a lock."""
_descriptors: set[int] = set()


def _after_fork() -> None:
    """A forked child (a loader's worker) must not hold on to locks when its parent was killed."""
    for descriptor in _descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
    _descriptors.clear()


os.register_at_fork(after_in_child=_after_fork)


class FileLock:
    """A lock on a file, shared or exclusive; the system gives it back when the process ends, however it ends.

    A file system without locks locks nobody out.

    Args:
        path: the file; it is made, and stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shared: bool | None = None
        self._descriptor = -1

    def take(self, shared: bool = False) -> bool:
        """Take the lock if nobody stands in the way; says whether it was taken.

        A lock that is held already becomes what is asked for; where that fails it may be lost.

        Raises:
            OSError: the file cannot be opened for writing.
        """
        if self._descriptor < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # NFS wants a file open for writing where the lock is exclusive, and for reading where it is shared.
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            _descriptors.add(self._descriptor)
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.release()
            return False
        except OSError:
            pass  # a file system without locks
        self.shared = shared
        return True

    def wait(self, shared: bool = False, told: Callable[[], None] = lambda: None, seconds: float | None = None) -> bool:
        """Take the lock as soon as it is free; says whether it was taken.

        Args:
            shared: whether others may hold it too.
            told: called once, if there is something to wait for.
            seconds: wait no longer; None for as long as it takes.

        Raises:
            Interrupted: a signal ended the wait.
        """
        end = None if seconds is None else time.monotonic() + seconds
        waited = False
        while not self.take(shared):
            if end is not None and time.monotonic() >= end:
                return False
            if not waited:
                told()
            waited = True
            check()
            time.sleep(POLL)
        return True

    def fileno(self) -> int:
        """Descriptor of a lock that is held, for a child process that is to hold it as well (`pass_fds`)."""
        return self._descriptor

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._descriptor >= 0:
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor, self.shared = -1, None


@contextmanager
def locked(path: Path, seconds: float | None = 30.0) -> Iterator[None]:
    """Hold a lock for a short piece of work; after `seconds` the work is done without it.

    Args:
        path: the lock's file.
        seconds: patience with who holds it.
    """
    lock = FileLock(path)
    lock.wait(seconds=seconds)
    try:
        yield
    finally:
        lock.release()
