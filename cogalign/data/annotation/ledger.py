"""`annotations.jsonl`: every answer that was paid for, so that none is paid for twice."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from cogalign.models.endpoint_wire import MOST_TOKENS, Usage

LEDGER = "annotations.jsonl"


@dataclass(frozen=True)
class Entry:
    """One answer, or requests that were sent without one."""

    key: str
    """Digest of the question; see `prompt.digest`."""
    case: str
    attempt: int
    """From 1."""
    teacher: str
    prompt: str
    """`PROMPT_VERSION`."""
    date: str
    answer: str | None
    """The text as it came; None: nothing came."""
    cut: bool = False
    reason: str = ""
    """Why nothing came."""
    usage: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    """Names of the checks that refused it then; they are made anew when the answer is used again."""
    flags: list[str] = field(default_factory=list)


class Ledger:
    """The ledger of a case set. One process at a time; `add` may be called from several threads.

    Use it as a context manager.

    Raises:
        BlockingIOError: another process annotates this case set.
        ValueError: the ledger is a symbolic link or no file: it would be written elsewhere.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / LEDGER
        self.damaged = 0
        """Lines that could not be read: a run was killed while it wrote them."""
        self._answers: dict[str, list[Entry]] = {}
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Ledger:
        file = _opened(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entries, self.damaged = read_entries(self.path)
            for entry in entries:
                self.keep(entry)
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed run's last line keeps a line of its own
                    file.write(b"\n")
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"{self.path}: another process annotates this case set; wait for it") from None
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            if self.path.is_file() and self.path.stat().st_size == 0:
                self.path.unlink()

    def answers(self, key: str) -> list[Entry]:
        """The answers to a question so far, in their order."""
        with self._lock:
            return list(self._answers.get(key, ()))

    def add(self, entry: Entry) -> None:
        """Write an entry through to the disk.

        Raises:
            OSError: the disk is full, or the ledger is closed.
        """
        line = json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            if self._file is None:
                raise OSError(f"{self.path}: closed")
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.keep(entry)

    def keep(self, entry: Entry) -> None:
        """Know an entry, without writing it."""
        if entry.answer is not None:
            self._answers.setdefault(entry.key, []).append(entry)


def read_entries(path: Path) -> tuple[list[Entry], int]:
    """The entries of a ledger, and how many lines could not be read; none if there is no file.

    Raises:
        ValueError: it is a symbolic link or no file.
    """
    entries, damaged = [], 0
    if os.path.lexists(path):
        with _opened(path, os.O_RDONLY, "rb") as stream:
            for line in stream:
                if line.strip():
                    entry = _entry(line)
                    damaged += entry is None
                    entries += [entry] if entry is not None else []
    return entries, damaged


def usage_of(entry: Entry) -> Usage:
    """The tokens of an entry."""
    known = {f.name for f in fields(Usage)}
    return Usage(**{name: value for name, value in entry.usage.items() if name in known and _is_count(value)})


def _is_count(value: object) -> bool:
    """Whether a value of a file that others may have written is a number of tokens or requests."""
    return isinstance(value, int) and 0 <= value <= MOST_TOKENS


def _opened(path: Path, flags: int, mode: str) -> BinaryIO:
    """A file of the case set's own folder, opened without following a symbolic link: a set may come from elsewhere.

    Raises:
        ValueError: it is a symbolic link or no file.
    """
    wrong = f"{path}: found a symbolic link or no plain file, wanted a file of this folder; delete it to start anew"
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise ValueError(wrong) from None
        raise error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError(wrong)
    return cast(BinaryIO, os.fdopen(number, mode))


def _entry(line: bytes) -> Entry | None:
    """The entry of a line; None if it is damaged."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    texts = ("key", "case", "teacher", "prompt", "date")
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in texts):
        return None
    if not isinstance(row.get("answer"), str | None) or not isinstance(row.get("attempt"), int):
        return None
    known = {f.name for f in fields(Entry)}
    row = {name: value for name, value in row.items() if name in known}
    row["usage"] = row["usage"] if isinstance(row.get("usage"), dict) else {}
    return Entry(**row)
