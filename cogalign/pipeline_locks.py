"""Who may write where in a run folder: `cogalign run` alone, stage commands beside one another, each stage once.

`cogalign run` holds `<run>/.lock` for itself. A stage command shares it with others and holds `<run>/.locks/<stage>` for
itself; it shares the locks of the stages whose results it reads, so that nobody makes them anew meanwhile.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from cogalign.training.file_lock import LOCKS, FileLock, locked
from cogalign.training.progress import say
from cogalign.training.requeue import requeue_file

WHOLE = ".lock"
AFTER_REQUEUE = 120.0
"""Seconds that a batch job waits for a lock that others refuse at once."""


class RunLocks:
    """The locks of one command; all are given back at the end of the `with` block.

    Args:
        run_dir: the run's folder.
        alone: whether no other command may write there (`cogalign run`).
        active: False for a process beside the main one, which takes no locks.
    """

    def __init__(self, run_dir: Path, alone: bool, active: bool = True) -> None:
        self.run_dir, self.alone, self.active = run_dir, alone, active
        self._held: dict[str, FileLock] = {}

    def __enter__(self) -> RunLocks:
        """Take the run's own lock.

        Raises:
            ValueError: another command holds it.
        """
        if self.active:
            self._take(WHOLE, self.run_dir / WHOLE, shared=not self.alone, what="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give everything back."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()

    def write(self, name: str, wait: bool = False) -> None:
        """Hold a stage for this command alone.

        Args:
            name: the stage.
            wait: wait until it is free, with a message, instead of refusing.

        Raises:
            ValueError: another command holds it.
            Interrupted: a signal ended the wait.
        """
        self._stage(name, shared=False, wait=wait)

    def read(self, name: str, wait: bool = False) -> None:
        """Keep others from making a stage anew; as `write`."""
        self._stage(name, shared=True, wait=wait)

    def _stage(self, name: str, shared: bool, wait: bool) -> None:
        held = self._held.get(name)
        if not self.active or (held is not None and held.shared == shared):
            return
        self._take(name, self.run_dir / LOCKS / name, shared, f" ({name})", wait)

    def _take(self, name: str, path: Path, shared: bool, what: str, wait: bool = False) -> None:
        lock = self._held.setdefault(name, FileLock(path))

        def told() -> None:
            say(f"{name}: another command makes or uses it in {self.run_dir}; this one waits until it is done")

        # a node that died may hold its locks for a while on a network file system, and its job is elsewhere by then
        patience = None if wait else (AFTER_REQUEUE if requeue_file() is not None else 0.0)
        if lock.wait(shared, told, patience):
            return
        del self._held[name]
        raise ValueError(f"{self.run_dir}: another cogalign run is writing here{what}; wait, or give another --out")

    def release(self, name: str) -> None:
        """Give one stage back."""
        lock = self._held.pop(name, None)
        if lock is not None:
            lock.release()


def summary_lock(run_dir: Path) -> AbstractContextManager[None]:
    """A short lock for whoever writes `summary.json` from all stages' files."""
    return locked(run_dir / LOCKS / "summary")
