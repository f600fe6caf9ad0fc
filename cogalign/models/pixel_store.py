"""Entries of the pixel cache on disk: one file each, shared by all processes of a run, at most so many bytes in all.

Files are read, not kept: what stays in memory is the system's page cache, which gives way when memory is short.
Nothing is evicted, for with an order that visits every image once an epoch the entry that is thrown out is always the
one that is needed soonest; when the folder is full, the images that are in it stay fast.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cogalign.models.pixel_codec import Fields, PixelCodec, decode
from cogalign.training.progress import say

SUFFIX = ".pixels"
TOTAL = "bytes"
"""File with the size of all entries; its lock is held while one is added."""
STOPPED = "stopped"
"""File that is there when no entry is added any more, with the reason."""
KEEP_FREE = 2**30
"""Bytes of the disk that the cache leaves to checkpoints and other things."""


class PixelStore:
    """A folder of entries by key. Errors of the disk never reach the caller: the cache is only a shortcut."""

    def __init__(self, folder: Path, limit: int, keep_free: int = KEEP_FREE) -> None:
        """Open the folder, which need not exist.

        Args:
            folder: of the cache alone.
            limit: bytes of all entries together.
            keep_free: bytes that stay free on the disk.
        """
        self.folder, self.limit, self.keep_free = folder, limit, keep_free
        self._codec = PixelCodec()
        self._closed = False

    def get(self, key: str) -> Fields | None:
        """The entry of a key; None if there is none, or a damaged one, which is removed."""
        path = self._path(key)
        try:
            return decode(path.read_bytes())
        except OSError:
            return None
        except ValueError:
            self._remove(path)
            return None

    def has(self, key: str) -> bool:
        """Whether there is an entry, damaged or not."""
        return self._path(key).exists()

    def twin(self) -> PixelStore:
        """Another one of the same folder, for another thread."""
        return PixelStore(self.folder, self.limit, self.keep_free)

    def put(self, key: str, fields: Mapping[str, Any]) -> bool:
        """Add an entry, if there is room; whether it is there now."""
        if self.stopped:
            return False
        try:
            return self._put(self._path(key), self._codec.encode(fields))
        except TypeError:  # something in it cannot be written
            return False
        except OSError as error:  # a full or read-only disk, a quota
            self._stop(f"it cannot be written ({error.strerror or error})")
            return False

    @property
    def stopped(self) -> bool:
        """Whether no entry is added any more: the folder is full, or cannot be written."""
        self._closed = self._closed or (self.folder / STOPPED).exists()
        return self._closed

    def used(self) -> int:
        """Bytes of all entries, by the files that are there."""
        return sum(path.stat().st_size for path in self.folder.glob(f"*/*{SUFFIX}"))

    def recount(self) -> None:
        """Set the total right after a crash, drop what was cut off, and try again to add where that had stopped.

        Other processes may use the folder meanwhile: nobody writes without the lock.
        """
        if not self.folder.is_dir():
            return
        self._closed = False
        try:
            with self._locked():
                for left in self.folder.glob("*/.*.tmp"):
                    left.unlink(missing_ok=True)
                (self.folder / STOPPED).unlink(missing_ok=True)
                self._write_total(self.used())
        except OSError as error:
            self._stop(f"it cannot be written ({error.strerror or error})")

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _put(self, path: Path, content: bytes) -> bool:
        with self._locked():
            if path.exists():
                return True  # another process was faster
            total = self._total()
            if total + len(content) > self.limit:
                self._stop(f"full ({total / 1e9:.2f} of {self.limit / 1e9:.2f} GB, data.cache_gb)")
                return False
            if shutil.disk_usage(self.folder).free - len(content) < self.keep_free:
                self._stop("the disk is nearly full")
                return False
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                temporary.write_bytes(content)  # not flushed: the check sum tells what a power cut left behind
                self._write_total(total + len(content))
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return True

    def _remove(self, path: Path) -> None:
        try:
            with self._locked():
                size = path.stat().st_size
                path.unlink()
                self._write_total(max(0, self._total() - size))
        except OSError:
            pass  # another process was faster, or nothing can be removed; then it is computed each time

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; where locks are not known the total may be off by what is written at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / TOTAL, "ab") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:  # by name: a process that was forked meanwhile holds the same open file
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)

    def _total(self) -> int:
        text = (self.folder / TOTAL).read_bytes()
        return int(text) if text.strip().isdigit() else self.used()

    def _write_total(self, total: int) -> None:
        """Overwrite in place: the lock belongs to this very file."""
        with open(self.folder / TOTAL, "r+b") as file:
            file.write(b"%020d" % total)

    def _stop(self, reason: str) -> None:
        """Add no more; the first process to notice says so."""
        self._closed = True
        try:
            with open(self.folder / STOPPED, "x") as file:
                file.write(reason)
        except FileExistsError:
            return
        except OSError:
            pass
        say(f"note: pixel cache {self.folder}: {reason}; no more images are added, the others are processed each time")
