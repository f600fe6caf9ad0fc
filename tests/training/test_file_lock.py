"""Locks between real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cogalign.training.file_lock import FileLock, locked
from cogalign.training.interrupt import Interrupted, signals_interrupt

HOLDER = """
import os, sys, time
from pathlib import Path
from cogalign.training.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.take(shared=sys.argv[2] == "shared")
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def holder(path: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds a lock, and a child that it has forked, as a loader forks its workers."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_lock_keeps_others_out_until_its_process_dies_though_a_forked_child_lives(tmp_path: Path) -> None:
    process, child = holder(tmp_path / "lock", "exclusive")
    try:
        assert not FileLock(tmp_path / "lock").take()
        assert not FileLock(tmp_path / "lock").take(shared=True)
        process.kill()
        process.wait()
        # The child closes what it was given as soon as it runs; the lock is free long before it ends.
        assert FileLock(tmp_path / "lock").wait(seconds=40)
        os.kill(child, 0)
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_shared_locks_stand_beside_one_another(tmp_path: Path) -> None:
    process, child = holder(tmp_path / "lock", "shared")
    try:
        mine = FileLock(tmp_path / "lock")
        assert mine.take(shared=True) and mine.shared
        assert not FileLock(tmp_path / "lock").take()
    finally:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)
    assert mine.wait(shared=False, seconds=30)  # the system takes a moment to end what was killed


def test_a_file_system_without_locks_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    assert FileLock(tmp_path / "lock").take()
    assert FileLock(tmp_path / "lock").take()


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    told: list[str] = []
    held = FileLock(tmp_path / "lock")
    assert held.take()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM"), signals_interrupt():
        timer.start()
        FileLock(tmp_path / "lock").wait(told=lambda: told.append("waiting"))
    assert told == ["waiting"]


def test_a_short_lock_is_not_waited_for_without_end(tmp_path: Path) -> None:
    held = FileLock(tmp_path / "lock")
    assert held.take()
    with locked(tmp_path / "lock", seconds=0.3):
        pass
    held.release()
    with locked(tmp_path / "lock", seconds=0):
        assert not FileLock(tmp_path / "lock").take()
