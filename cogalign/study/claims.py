"""Who does which run of a study, where several calls share its work: a file lock for each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cogalign.training.atomic import write_text
from cogalign.training.file_lock import LOCKS, FileLock
from cogalign.training.progress import say

WHOLE = "study"
"""Lock that each call shares; who holds it alone may write the recipes."""
RESULTS = "results"


class Claims:
    """The locks of one call.

    A run's lock goes on to the process that does it, so that nobody takes the run while that process lives, even when
    the call itself was killed.

    Args:
        out: the study's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def take(self, name: str) -> FileLock | None:
        """Take a run; None if another call or its process has it."""
        lock = self._lock(name)
        return lock if lock.take() else None

    @contextmanager
    def working(self, files: Mapping[Path, str]) -> Iterator[None]:
        """Write what says what is run, and keep others from changing it as long as the block runs.

        Args:
            files: content by path.

        Raises:
            ValueError: another call works here with other settings.
            Interrupted: a signal came.
        """
        lock = self._lock(WHOLE)
        try:
            if lock.take():
                for path, text in files.items():
                    if _text(path) != text:
                        write_text(path, text)
            lock.wait(shared=True)
            for path, text in files.items():
                if _text(path) != text:
                    raise ValueError(
                        f"{self.out}: another `cogalign study` works here with other settings ({path} differs); "
                        "give the same arguments, wait until it has ended, or give another --out"
                    )
            yield
        finally:
            lock.release()

    @contextmanager
    def results(self) -> Iterator[None]:
        """One call at a time writes the results.

        Raises:
            Interrupted: a signal ended the wait.
        """
        lock = self._lock(RESULTS)
        lock.wait(told=lambda: say("study: another call writes the results; this one waits"))
        try:
            yield
        finally:
            lock.release()

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.out / LOCKS / name)


def _text(path: Path) -> str | None:
    """A file's text; None if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
