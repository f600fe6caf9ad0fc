"""The log of an import: a JSON line for each photograph that was done, so that none is decoded twice."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cogalign.data.images import Fingerprint
from cogalign.data.importers.work import Done

FILES = ("file_name", "mask_file_name")
"""Keys of a row that name its files."""


class Log:
    """A log, to which lines are added; the first says what settings it is of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: TextIO | None = None

    def settings(self) -> str | None:
        """Digest of the settings; None if there is no log or its first line is broken."""
        row = next(self._rows(), None)
        found = row.get("settings") if row is not None else None
        return found if isinstance(found, str) else None

    def begin(self, settings: str) -> None:
        """Start the log, or go on with it."""
        self._stream = self.path.open("a", encoding="utf-8")
        self._line({"settings": settings})

    def add(self, job: str, done: Done) -> None:
        """Note what became of a photograph, by the digest of its job."""
        self._line({"job": job, **_plain(done)})

    def close(self) -> None:
        """End writing."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def read(self, folder: Path) -> dict[str, Done]:
        """What became of the photographs, by the digest of the job.

        Left out are those whose files are not below `folder`, and those whose files a later line wrote again.
        """
        found: dict[str, Done] = {}
        writer: dict[str, str] = {}
        for row in self._rows():
            if "job" not in row:
                continue
            code, done = row["job"], _done(row)
            stem = _stem(done)
            if stem and (before := writer.get(stem)) not in (None, code):
                found.pop(str(before), None)
            if stem:
                writer[stem] = code
            found[code] = done
        return {code: done for code, done in found.items() if all((folder / name).is_file() for name in names(done))}

    def _line(self, row: dict[str, Any]) -> None:
        if self._stream is not None:
            self._stream.write("\n" + json.dumps(row))  # a line that a killed run cut off keeps its own
            self._stream.flush()

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The whole lines of the log."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row


def names(done: Done) -> list[str]:
    """The files of a case: its image, and its mask if it has one."""
    return [done.row[name] for name in FILES if done.row[name]] if done.row else []


def _stem(done: Done) -> str:
    """What the files of a case are called, without folder and suffix: its image and mask have the same."""
    return str(done.row["file_name"]).removeprefix("images/").rpartition(".")[0] if done.row else ""


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
