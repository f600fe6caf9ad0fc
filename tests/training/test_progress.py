import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.training import progress
from cogalign.training.heartbeat import PULSE
from cogalign.training.progress import format_seconds, plain_line, track
from cogalign.training.progress_file import read_progress


def test_all_items_come_in_order_and_a_last_line_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([3, 1, 2], "counting")) == [3, 1, 2]
    assert capsys.readouterr().err.startswith("counting 3/3 (")


def test_a_generator_without_length_is_tracked(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(track((i for i in range(4)), "adding")) == 6
    assert capsys.readouterr().err.startswith("adding 4 (")


def test_plain_lines_come_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))
    # progress's own clock only: every item is a sign of life, too, which reads the clock
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    list(track(range(5), "slow"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["slow 2/5", "slow 4/5", "slow 5/5"]
    assert lines[0] == "slow 2/5 (6.0 s each, 18s left)"


def test_every_item_is_a_sign_of_life_for_the_watchdog() -> None:
    beats = []
    for _ in track(range(2), "counting"):
        beats.append(PULSE.when)
        PULSE.when = 0.0
    assert all(beats) and PULSE.when == 0.0


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(track(range(3), "with a bar")) == [0, 1, 2]
    assert "with a bar" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_the_rate_counts_only_what_this_try_did() -> None:
    line = plain_line("sft", 30, 40, 10.0, "loss 0.5", before=10)
    assert line == "sft 30/40 (2.0/s, 5s left) loss 0.5"


@settings(max_examples=100, deadline=None)
@given(
    done=st.integers(0, 10**6),
    total=st.none() | st.integers(0, 10**6),
    seconds=st.floats(0, 1e6, allow_nan=False),
)
def test_a_line_never_fails(done: int, total: int | None, seconds: float) -> None:
    assert plain_line("x", done, total, seconds).startswith(f"x {done}")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (185, "3m05s"), (7800, "2h10m")]
)
def test_durations_are_written_as_people_do(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_loop_that_goes_on_counts_what_was_done_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([7, 8], "asking", folder=tmp_path, unit="images", before=3)) == [7, 8]
    assert capsys.readouterr().err.startswith("asking 5/5 (")
    found = read_progress(tmp_path)
    assert found is not None
    assert (found.step, found.total, found.unit) == (5, 5, "images")


def test_a_loop_that_is_broken_off_leaves_the_number_that_was_done(tmp_path: Path) -> None:
    for item in track(range(10), "asking", folder=tmp_path):
        if item == 4:
            break
    found = read_progress(tmp_path)
    assert found is not None
    assert (found.step, found.total) == (4, 10)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    list(track(range(3), "asking"))
    assert list(tmp_path.iterdir()) == []
