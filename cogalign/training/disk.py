"""Room on the disk and the right to write: looked at before the work, and told in one line when it is gone. Light."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS,)
TEMPORARY = re.compile(r"^\.(.+?)(\.\d+-[0-9a-f]{8})?\.tmp$")
"""Names under which files are written before they get their own."""


class DiskError(OSError):
    """A disk that is full or cannot be written, in one line for the user; `errno` and `filename` are the system's."""

    def __init__(self, number: int | None, message: str, filename: Path) -> None:
        super().__init__(number or errno.EIO, message, str(filename))

    def __str__(self) -> str:
        return str(self.strerror)


def require_writable(folder: Path) -> None:
    """Write a file into a folder and take it away again; the folder is made if it is not there.

    Raises:
        DiskError: it cannot be written.
    """
    probe = folder / f".write-test.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
    except OSError as error:
        if error.errno in FULL:
            raise no_room(folder, "there is no room for a single file") from error
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        message = f"{folder} cannot be written ({reason}); give another folder with --out"
        raise DiskError(error.errno, message, folder) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def unwritable(error: BaseException | None, what: str, folder: Path, then: str) -> DiskError | None:
    """A full or read-only disk behind an error, in one line; None if there is none, or if it has been told so.

    Args:
        error: what a writer raised; libraries raise their own over the system's.
        what: was being written.
        folder: where.
        then: what is kept, and how to go on.
    """
    system = _behind(error, (*FULL, *READ_ONLY))
    if system is None or isinstance(system, DiskError) or str(error).startswith("disk full"):
        return None
    if system.errno in FULL:
        message = f"disk full while writing {what} ({size(shutil.disk_usage(folder).free)} free); make room; {then}"
    else:
        message = f"the disk is read-only: {what} could not be written; {then}"
    return DiskError(system.errno, message, Path(system.filename or folder))


def file_behind(error: BaseException | None) -> Path | None:
    """The file that a full or read-only disk kept from being written, by the name that it was to get."""
    system = _behind(error, (*FULL, *READ_ONLY))
    if system is None or not isinstance(system.filename, str):
        return None
    path = Path(system.filename)
    return path.with_name(TEMPORARY.sub(r"\1", path.name))


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch's file writer raises its own error over the system's."""
    return _behind(error, FULL) is not None


def no_room(folder: Path, reason: str) -> DiskError:
    """The error of a look at the disk before the work."""
    return DiskError(errno.ENOSPC, f"disk full: {folder}: {reason}; make room and run the same command again", folder)


def size(count: float) -> str:
    """Bytes as people write them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _behind(error: BaseException | None, numbers: tuple[int, ...]) -> OSError | None:
    """The first error of the system with one of these numbers among an error and those that it came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        error = error.__cause__ or error.__context__
    return None
