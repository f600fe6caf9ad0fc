"""How far an import is: what was done is found again after an interruption, and a finished import is not repeated."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from cogalign.data.caseset import METADATA
from cogalign.data.images import Fingerprint
from cogalign.data.importers.work import Done, Job, Settings
from cogalign.training.atomic import write_json

FOLDER = ".import"
_VERSION = 1
"""To be raised when an import writes something else from the same files."""


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
        settings: digest of the settings; work that was done under others is thrown away.
        whole: digest of everything; a finished import of the same digest is not repeated.

    Raises:
        FileExistsError: `out` holds something that no import wrote, or metadata that was changed since.
    """

    def __init__(self, out: Path, settings: str, whole: str) -> None:
        self.out = out
        self._settings = settings
        self._whole = whole
        self._log = out / FOLDER / "progress.jsonl"
        self._finished = out / FOLDER / "done.json"
        self._stream: TextIO | None = None
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / FOLDER).is_dir())):
            raise FileExistsError(f"{out}: holds something that no import wrote; wanted a new or an empty folder")

    def finished(self) -> dict[str, Any] | None:
        """What `finish` was given, if this very import is done already."""
        record = _json(self._finished)
        if record is None or record.get("whole") != self._whole or not (self.out / METADATA).is_file():
            return None
        return record

    def __enter__(self) -> State:
        record = _json(self._finished)
        metadata = self.out / METADATA
        if record is not None and metadata.is_file() and record.get("metadata") != _sha256(metadata):
            raise FileExistsError(
                f"{self.out}: other sources or settings than those it was made from, and {METADATA} was changed since "
                "(split or annotated?); give a new folder, or delete this one"
            )
        metadata.unlink(missing_ok=True)
        self._finished.unlink(missing_ok=True)
        if not self._goes_on():
            for name in (FOLDER, "images", "masks"):
                shutil.rmtree(self.out / name, ignore_errors=True)
        for name in (FOLDER, "images", "masks"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        self.known = dict(self._read())
        self._stream = self._log.open("a", encoding="utf-8")
        self._line({"settings": self._settings})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, job: str, done: Done) -> None:
        """Note what became of a job, by its digest."""
        self._line({"job": job, **_plain(done)})

    def finish(self, record: dict[str, Any]) -> None:
        """Note that all is written; `record` is kept for `finished`."""
        if self._stream is not None:
            self._stream.close()
        write_json(self._finished, {**record, "whole": self._whole, "metadata": _sha256(self.out / METADATA)})
        self._log.unlink()

    def _line(self, row: dict[str, Any]) -> None:
        if self._stream is not None:
            self._stream.write("\n" + json.dumps(row))  # a line that a killed run cut off keeps its own
            self._stream.flush()

    def _goes_on(self) -> bool:
        """Whether the log is of the same settings."""
        first = next(self._rows(), None)
        return first is not None and first.get("settings") == self._settings

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The whole lines of the log."""
        if not self._log.is_file():
            return
        with self._log.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row

    def _read(self) -> Iterator[tuple[str, Done]]:
        """Digest and outcome of the jobs that were done and whose files are there."""
        for row in self._rows():
            if "job" in row:
                done = _done(row)
                names = (
                    [done.row[name] for name in ("file_name", "mask_file_name") if done.row[name]] if done.row else []
                )
                if all((self.out / name).is_file() for name in names):
                    yield row["job"], done


def _plain(done: Done) -> dict[str, Any]:
    """An outcome as plain values."""
    found: dict[str, Any] = {
        "row": done.row,
        "reason": done.reason,
        "left_out": done.left_out,
        "ignored": done.ignored,
    }
    if done.print_ is not None:
        thumbnail = base64.b64encode(done.print_.thumbnail.astype(np.uint8).tobytes()).decode()
        found["print"] = [done.print_.digest, done.print_.bits, thumbnail, done.print_.size]
    return found


def _done(row: dict[str, Any]) -> Done:
    """An outcome from plain values."""
    print_ = None
    if "print" in row:
        code, bits, thumbnail, size = row["print"]
        pixels = np.frombuffer(base64.b64decode(thumbnail), dtype=np.uint8).reshape(32, 32)
        print_ = Fingerprint(code, bits, pixels, (size[0], size[1]))
    return Done(row["row"], print_, row["reason"], tuple(row["left_out"]), tuple(row["ignored"]))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
