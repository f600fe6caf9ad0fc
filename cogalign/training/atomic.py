"""Whole files or none: write to a temporary name in the same folder, flush to disk, rename."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process takes, on this machine or another one (pids repeat in containers)."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside the block an error of the system that names no file, as that of a full disk, gets this one's name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_file(path: Path, flush: bool = True) -> Iterator[BinaryIO]:
    """A binary file that gets its name only when the block ends without an error.

    Args:
        path: the final name; missing parent folders are made.
        flush: wait until the disk has it; not for what can be made again, or is worth nothing after a power cut.

    Raises:
        OSError: the disk is full or cannot be written; an older file of this name stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with named(path), open(temporary, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes, flush: bool = True) -> None:
    """Write bytes as a whole file or not at all; as `atomic_file`."""
    with atomic_file(path, flush) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write a text (UTF-8) as a whole file or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write plain values as indented JSON, as a whole file or not at all.

    Raises:
        TypeError: a value is neither plain nor a numpy or torch scalar.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n")


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows as JSON lines to a file; a line that a killed run cut off keeps a line of its own.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    with named(path), open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        file.write(lines)


def readable(folder: Path) -> None:
    """Give the files of a folder the permissions that new files have here: safetensors writes its own for the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _plain(value: Any) -> Any:
    """Paths as text, scalars and arrays of numpy and torch as numbers and lists."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
