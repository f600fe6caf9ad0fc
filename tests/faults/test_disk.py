"""A full disk and a run folder that cannot be written, on a small file system of its own (root may mount one)."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from cogalign.training.atomic import append_lines
from cogalign.training.disk import DiskError, file_behind, is_disk_full, require_writable, unwritable
from cogalign.training.disk_check import require_room
from tests.faults.conftest import DISK, RowCheck, good
from tests.faults.inject import BATCHES
from tests.faults.runs import Runs


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_or_turns_read_only_keeps_the_checkpoint_and_the_run_goes_on(
    runs: Runs, whole: Path, row: RowCheck, small_disk: Path
) -> None:
    remount(small_disk, f"size={768 * 2**10}")
    little = runs.of(small_disk / "run")
    assert little.code == 1 and little.steps == 0
    remount(small_disk, f"size={DISK}")
    full = runs.of(small_disk / "run", f"full:{small_disk}")
    assert full.code == 1 and "Traceback" not in full.output
    (small_disk / "filler").unlink()
    read_only = runs.of(small_disk / "run", f"readonly:{small_disk}@7")
    subprocess.run(["umount", str(small_disk)], check=True)  # what lies over it
    assert read_only.code == 1 and read_only.steps == 7 and "Traceback" not in read_only.output
    last = runs.of(small_disk / "run")
    row("no room for the checkpoints", "a look before training", little, full, whole, last=last)
    row("the disk fills up", "every writer", full, read_only, whole, last=last)
    row("the run folder turns read-only", "every writer", read_only, last, whole)
    assert not list((small_disk / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_a_run_folder_that_is_read_only_is_told_at_once(runs: Runs, row: RowCheck, small_disk: Path) -> None:
    (small_disk / "run").mkdir()
    remount(small_disk, "ro")
    (small_disk.parent / "run").symlink_to(small_disk / "run")
    first = runs.of(small_disk.parent / "run")
    assert first.code == 1 and "Traceback" not in first.output and first.steps == 0
    row("the run folder is read-only", "a look at the start", first, lost="0", resumed="-")


@pytest.mark.slow
def test_a_disk_that_fills_up_while_answers_are_kept_costs_the_batch_in_hand(
    runs: Runs, whole: Path, row: RowCheck, small_disk: Path, tmp_path: Path
) -> None:
    reference = good(runs.command("evaluate", shutil.copytree(whole, tmp_path / "whole")))
    out = shutil.copytree(whole, small_disk / "run")
    first = runs.command("evaluate", out, f"fullwhileasking:{small_disk}")
    assert first.code == 1 and "Traceback" not in first.output
    (small_disk / "filler").unlink()
    kept = whole_lines(out)
    second = runs.command("evaluate", out)
    good(second)
    asked = first.output.count("answered: ")
    assert kept == BATCHES and "goes on where it was stopped" in second.output
    predictions = [pd.read_parquet(folder / "evaluate/predictions.parquet") for folder in (out, reference)]
    pd.testing.assert_frame_equal(*predictions)
    row("the disk fills up in `evaluate`", "every writer", first, second,
        lost=f"{asked - kept} batch of answers", resumed="yes, same predictions")  # fmt: skip


def whole_lines(out: Path) -> int:
    """Batches of answers that are kept."""
    (path,) = (out / "evaluate/models").glob("*.jsonl")
    return path.read_bytes().count(b"}\n")


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError) as error:
        require_writable(tmp_path / "file/run")
    assert (
        str(error.value) == f"{tmp_path}/file/run cannot be written (not a directory); give another folder with --out"
    )


def test_checkpoints_that_are_there_make_room_for_new_ones(small_disk: Path) -> None:
    require_room(small_disk, 2 * 2**20, keep=2)
    with pytest.raises(DiskError, match=r"3 of 3\.0 MiB") as error:
        require_room(small_disk, 3 * 2**20, keep=2)
    assert is_disk_full(error.value) and error.value.errno == errno.ENOSPC
    (small_disk / "checkpoints").mkdir()
    (small_disk / "checkpoints/step-00000001.ckpt").write_bytes(bytes(2 * 2**20))
    require_room(small_disk, 2 * 2**20 + 2**19, keep=2)


def test_a_full_disk_is_seen_behind_another_error(tmp_path: Path) -> None:
    try:
        try:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"x")
        except OSError:
            raise RuntimeError("unexpected pos")  # noqa: B904  as torch's file writer does
    except RuntimeError as error:
        assert is_disk_full(error)
        told = unwritable(error, "the checkpoint", tmp_path, "go on")
        assert told is not None and told.errno == errno.ENOSPC
        assert unwritable(told, "something else", tmp_path, "") is None  # it has been told
    assert not is_disk_full(RuntimeError("unexpected pos")) and not is_disk_full(None)
    assert unwritable(RuntimeError("unexpected pos"), "it", tmp_path, "") is None


def test_a_full_disk_names_the_file_that_could_not_be_written() -> None:
    with pytest.raises(OSError, match="/dev/full") as error:
        append_lines(Path("/dev/full"), [{"id": "a"}])
    assert error.value.errno == errno.ENOSPC and file_behind(error.value) == Path("/dev/full")


def test_a_file_is_named_as_it_was_to_be_and_not_as_it_is_written() -> None:
    for name in (".stage.json.4711-0123abcd.tmp", ".stage.json.tmp", "stage.json"):
        error = OSError(errno.EROFS, os.strerror(errno.EROFS), f"/run/{name}")
        assert file_behind(error) == Path("/run/stage.json")
