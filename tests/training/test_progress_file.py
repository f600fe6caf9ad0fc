"""`progress.json`: whole at any time, rarely written, and never a reason for a run to fail."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cogalign.training import progress_file
from cogalign.training.launched import RANKS, is_main_process
from cogalign.training.progress import track
from cogalign.training.progress_file import FILE_NAME, ProgressFile, read_progress, restarts, write_progress
from cogalign.training.stage_file import StageFile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_RESTART_COUNT", *RANKS):
        monkeypatch.delenv(name, raising=False)


class Clock:
    """Seconds that pass only when a test says so; counts the files that are written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.writes = 100.0, 0
        monkeypatch.setattr(progress_file.time, "monotonic", lambda: self.now)
        real = progress_file.os.replace

        def replace(source: Path, target: Path) -> None:
            self.writes += 1
            real(source, target)

        monkeypatch.setattr(progress_file.os, "replace", replace)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_progress(tmp_path / "sft", 30, 40, 0.5)
    found = read_progress(tmp_path / "sft")
    assert found is not None
    assert (found.step, found.total, found.seconds_per_step, found.unit, found.restarts) == (30, 40, 0.5, "steps", 0)
    assert found.seconds_left == 5.0
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(found.time) < timedelta(minutes=1)
    assert [path.name for path in (tmp_path / "sft").iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(("total", "seconds"), [(None, 0.5), (40, None)])
def test_without_a_total_or_a_rate_no_time_left_is_claimed(
    tmp_path: Path, total: int | None, seconds: float | None
) -> None:
    write_progress(tmp_path, 3, total, seconds, "images")
    found = read_progress(tmp_path)
    assert found is not None
    assert found.seconds_left is None


def test_a_step_beyond_the_total_leaves_no_time(tmp_path: Path) -> None:
    write_progress(tmp_path, 50, 40, 2.0)
    found = read_progress(tmp_path)
    assert found is not None
    assert found.seconds_left == 0


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[1]", b'{"step": 1}', b"\xff\xfe", b'{"of": "a later version"}']
)
def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    assert read_progress(tmp_path) is None


def test_many_steps_a_second_are_written_every_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    file = ProgressFile(tmp_path, 1000)
    for step in range(1, 1001):  # ten steps a second, for 100 seconds
        clock.now += 0.1
        file.update(step)
    assert 45 <= clock.writes <= 51
    file.update(1000, last=True)
    found = read_progress(tmp_path)
    assert found is not None
    assert found.step == 1000
    assert found.seconds_per_step == pytest.approx(0.1)


def test_a_step_that_stands_still_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    file = ProgressFile(tmp_path, 10)
    for _ in range(50):  # passes of one accumulated step
        clock.now += 3
        file.update(0)
    assert clock.writes == 1


def test_the_rate_is_that_of_this_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    file = ProgressFile(tmp_path, 120, before=100)
    start = read_progress(tmp_path)
    assert start is not None
    assert (start.step, start.seconds_per_step) == (100, None)
    clock.now += 30
    file.update(110)
    found = read_progress(tmp_path)
    assert found is not None
    assert (found.seconds_per_step, found.seconds_left) == (3.0, 30.0)


@pytest.mark.parametrize(("by_slurm", "resumed", "wanted"), [
    (None, None, 0), ("2", None, 2), (None, 3, 3), ("2", 3, 3), ("4", 3, 4), ("", 1, 1), ("?", None, 0),
])  # fmt: skip
def test_restarts_are_slurms_or_those_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_slurm: str | None, resumed: int | None, wanted: int
) -> None:
    if by_slurm is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", by_slurm)
    if resumed is not None:
        StageFile("sft", "digest", resumed=resumed).write(tmp_path)
    assert restarts(tmp_path) == wanted
    write_progress(tmp_path, 1, 2, 0.1)
    assert json.loads((tmp_path / FILE_NAME).read_text())["restarts"] == wanted


def test_a_full_disk_is_one_warning_and_the_loop_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file is a link to /dev/full, so that the real system says that there is no space."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr("secrets.token_hex", lambda nbytes: "0" * 2 * nbytes)
    temporary = tmp_path / f".{FILE_NAME}.{os.getpid()}-{'0' * 8}.tmp"
    file = None
    for step in range(4):
        temporary.symlink_to("/dev/full")
        clock.now += 5
        if file is None:
            file = ProgressFile(tmp_path, 4)
        else:
            file.update(step)
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert f"warning: {tmp_path / FILE_NAME} cannot be written (No space left on device)" in said
    assert read_progress(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_folder_does_not_stop_a_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluate").write_text("a file where a folder should be")
    assert list(track(range(3), "asking", folder=tmp_path / "evaluate")) == [0, 1, 2]
    assert "progress.json cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("environment", "wanted"), [
    ({}, True), ({"RANK": "0"}, True), ({"RANK": "3"}, False), ({"LOCAL_RANK": "1"}, False),
    ({"SLURM_PROCID": "2"}, False), ({"SLURM_PROCID": "0"}, True), ({"NODE_RANK": "1"}, False), ({"LOCAL_RANK": ""}, True), ({"RANK": "2", "LOCAL_RANK": "0"}, False),
])  # fmt: skip
def test_the_first_rank_writes(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: bool) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is wanted


def test_another_rank_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    list(track(range(3), "asking", folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Another process writes as fast as it can; every read gives a whole file whose steps only grow."""
    code = (
        "import sys; from pathlib import Path; from cogalign.training.progress_file import write_progress\n"
        "for step in range(3000): write_progress(Path(sys.argv[1]), step, 3000, 0.1)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) as writer:
        seen = -1
        while writer.poll() is None:
            if (tmp_path / FILE_NAME).exists():
                found = read_progress(tmp_path)
                assert found is not None
                assert found.step >= seen
                seen = found.step
    assert writer.returncode == 0
    assert seen > 0
