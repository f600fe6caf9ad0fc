"""How far an import is: what was done is found again after an interruption, and a finished import is not repeated.

What an import writes lies in `.import/next` until all is done; only then does it take the place of what an earlier import
of the same folder left. So a case set stays whole if its sources are broken or the new import is broken off. The log of
the finished import is kept: when files are added or changed, only those are decoded.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from cogalign.data.caseset import METADATA
from cogalign.data.importers.progress import FILES, Log, names
from cogalign.data.importers.tree import IMPORTED as FOLDER
from cogalign.data.importers.work import Done, Job, Settings
from cogalign.training.atomic import write_json, write_text
from cogalign.training.file_digest import sha256_of

_VERSION = 2
"""To be raised when an import writes something else from the same files."""
_FOLDERS = ("images", "masks")
_OLD = 3600  # seconds after which a temporary file is nobody's


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of texts, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{len(text)}:{text}".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def settings_digest(settings: Settings) -> str:
    """Digest of what an import's files depend on beside the photographs."""
    parts = (_VERSION, settings.card, settings.root.resolve(), settings.reference, settings.side)
    return digest(map(repr, parts))


def job_digest(job: Job) -> str:
    """Digest of a photograph: its annotation, and path, size and time of change of its files."""
    return digest([repr(job), *map(_file_state, job.photograph.files)])


def _file_state(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        return str(error)
    return f"{stat.st_size} {stat.st_mtime_ns}"


class State:
    """The folder `.import` of a case set that is being imported: use it as a context manager.

    Args:
        out: folder of the case set.
        settings: digest of the settings; work that was done under others is not used.
        whole: digest of everything; a finished import of the same digest is not repeated.

    Raises:
        FileExistsError: `out` holds something that no import wrote, or metadata that was changed since, or another import
            is writing to it.
    """

    known: dict[str, Done]
    """What became of photographs before, by the digest of the job."""

    def __init__(self, out: Path, settings: str, whole: str) -> None:
        self.out = out
        self.next = out / FOLDER / "next"
        """The folder that images and masks are written to."""
        self._settings = settings
        self._whole = whole
        self._log = Log(out / FOLDER / "progress.jsonl")
        self._next_log = Log(self.next / "progress.jsonl")
        self._finished = out / FOLDER / "done.json"
        self._moving = out / FOLDER / "moving"
        self._lock: BinaryIO | None = None
        self._old: dict[str, Done] = {}
        self._new: dict[str, Done] = {}
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / FOLDER).is_dir())):
            raise FileExistsError(f"{out}: holds something that no import wrote; wanted a new or an empty folder")

    def finished(self) -> dict[str, Any] | None:
        """What `finish` was given, if this very import is done already and its files are there.

        None too if some files could not be read for reasons outside them, unless the metadata was changed since.
        """
        record = _json(self._finished)
        metadata = self.out / METADATA
        if record is None or record.get("whole") != self._whole or not metadata.is_file():
            return None
        if record.get("again") and record.get("metadata") == sha256_of(metadata):
            return None
        return record if self._all_there(metadata) else None

    def _all_there(self, metadata: Path) -> bool:
        """Whether the files that the metadata name are there."""
        try:
            rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines() if line.strip()]
            return all((self.out / row[name]).is_file() for row in rows for name in FILES if row.get(name))
        except (ValueError, AttributeError, TypeError):
            return True  # somebody else wrote it, and `check` says what is wrong with it

    def __enter__(self) -> State:
        (self.out / FOLDER).mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.out / FOLDER / "lock", self.out)
        try:
            self._prepare()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _prepare(self) -> None:
        record, metadata = _json(self._finished), self.out / METADATA
        if record is not None and metadata.is_file() and record.get("metadata") != sha256_of(metadata):
            raise FileExistsError(
                f"{self.out}: other sources or settings than those it was made from, or some of its images are gone, and "
                f"{METADATA} was changed since (split or annotated?); give a new folder, or delete this one"
            )
        for left in (*self.out.glob(".*.tmp"), *(self.out / FOLDER).glob(".*.tmp")):
            if time.time() - left.stat().st_mtime > _OLD:
                left.unlink()  # of a process that was killed while it wrote
        if self._moving.is_file():
            self._move()
        if self._next_log.settings() != self._settings:
            shutil.rmtree(self.next, ignore_errors=True)
        for name in _FOLDERS:
            (self.next / name).mkdir(parents=True, exist_ok=True)
        self._old = self._log.read(self.out) if self._log.settings() == self._settings else {}
        self._new = self._next_log.read(self.next)
        self.known = {**self._old, **self._new}
        self._next_log.begin(self._settings)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._next_log.close()
        if self._lock is not None:
            self._lock.close()  # which ends the lock
            self._lock = None

    def add(self, job: str, done: Done) -> None:
        """Note what became of a job, by its digest; what the next run must try again is not noted."""
        if not done.again:
            self._next_log.add(job, done)
            self._new[job] = done

    def publish(self, jobs: Collection[str]) -> None:
        """Put what was written in the place of what was there: from now on `out` holds the files of these jobs.

        Metadata must be written next. A run that is killed in between is gone on with by the next.
        """
        wanted = {name for job in jobs if job in self._new for name in names(self._new[job])}
        for folder in _FOLDERS:
            for path in (self.next / folder).iterdir():
                if f"{folder}/{path.name}" not in wanted:
                    path.unlink()
        for job in jobs:
            if job not in self._new and job in self._old:
                self._next_log.add(job, self._old[job])
        self._next_log.close()
        for path in (self.out / METADATA, self._finished):
            path.unlink(missing_ok=True)
        write_text(self._moving, "")
        self._move()

    def _move(self) -> None:
        """Move files and log of `.import/next` to their places, or the rest of them."""
        for name in _FOLDERS:
            source, target = self.next / name, self.out / name
            if source.is_dir() and not target.exists():
                source.rename(target)
            for path in source.iterdir() if source.is_dir() else ():
                os.replace(path, target / path.name)
        with suppress(FileNotFoundError):  # it was moved before the run was killed
            os.replace(self._next_log.path, self._log.path)
        shutil.rmtree(self.next, ignore_errors=True)
        self._moving.unlink()

    def finish(self, record: dict[str, Any], *, again: bool) -> None:
        """Note that all is written; `record` is kept for `finished`, `again` that the next run must try again."""
        content = {**record, "whole": self._whole, "again": again, "metadata": sha256_of(self.out / METADATA)}
        write_json(self._finished, content)


def _locked(path: Path, out: Path) -> BinaryIO:
    """A file that is locked until it is closed, or its process ends."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FileExistsError(
            f"{out}: another import is writing to it; wait for its end, or give a new folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
