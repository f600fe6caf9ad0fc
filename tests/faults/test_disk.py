"""A full disk and a run folder that cannot be written, on a small file system of its own (root may mount one)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cogalign.training.disk import is_disk_full, require_room, require_writable
from tests.faults.conftest import Runs
from tests.faults.inject import AT

RowCheck = Callable[..., None]
SIZE = 8 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_checkpoint_and_the_run_goes_on(
    runs: Runs, whole: Path, row: RowCheck, small_disk: Path
) -> None:
    first = runs.of(small_disk / "run", f"full:{small_disk}")
    assert first.code == 1 and "Traceback" not in first.output
    (small_disk / "filler").unlink()
    second = runs.of(small_disk / "run")
    row("the disk fills up", "every writer", first, second, whole)
    assert not list((small_disk / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_a_disk_without_room_for_the_checkpoints_is_told_before_training(
    runs: Runs, whole: Path, row: RowCheck, small_disk: Path
) -> None:
    remount(small_disk, f"size={768 * 2**10}")
    first = runs.of(small_disk / "run")
    assert first.code == 1 and first.steps == 0
    remount(small_disk, f"size={SIZE}")
    row("no room for the checkpoints", "a look before training", first, runs.of(small_disk / "run"), whole)


@pytest.mark.slow
def test_a_run_folder_that_turns_read_only_keeps_the_checkpoint(
    runs: Runs, whole: Path, row: RowCheck, small_disk: Path
) -> None:
    first = runs.of(small_disk / "run", f"readonly:{small_disk}")
    subprocess.run(["umount", str(small_disk)], check=True)  # what lies over it
    assert first.code == 1 and first.steps == AT and "Traceback" not in first.output
    row("the run folder turns read-only", "every writer", first, runs.of(small_disk / "run"), whole)


@pytest.mark.slow
def test_a_run_folder_that_is_read_only_is_told_at_once(runs: Runs, row: RowCheck, small_disk: Path) -> None:
    (small_disk / "run").mkdir()
    recipe = runs.recipe(small_disk / "run")
    assert recipe
    remount(small_disk, "ro")
    (small_disk.parent / "run").symlink_to(small_disk / "run")
    first = runs.of(small_disk.parent / "run")
    assert first.code == 1 and "Traceback" not in first.output
    row("the run folder is read-only", "a look at the start", first, None, None)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run cannot be written \(not a directory\)"):
        require_writable(tmp_path / "file/run")


def test_checkpoints_that_are_there_make_room_for_new_ones(small_disk: Path) -> None:
    require_room(small_disk, 2 * 2**20, keep=2)
    with pytest.raises(OSError, match=r"3 of 3\.0 MiB") as error:
        require_room(small_disk, 3 * 2**20, keep=2)
    assert is_disk_full(error.value) and error.value.errno == errno.ENOSPC
    (small_disk / "checkpoints").mkdir()
    (small_disk / "checkpoints/step-00000001.ckpt").write_bytes(bytes(2 * 2**20))
    require_room(small_disk, 2 * 2**20 + 2**19, keep=2)


def test_a_full_disk_is_seen_behind_another_error() -> None:
    try:
        try:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"x")
        except OSError:
            raise RuntimeError("unexpected pos")  # noqa: B904  as torch's file writer does
    except RuntimeError as error:
        assert is_disk_full(error)
    assert not is_disk_full(RuntimeError("unexpected pos")) and not is_disk_full(None)
