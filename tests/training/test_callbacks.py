"""The progress of a training on the screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogalign.training.interrupt import Interrupted
from cogalign.training.progress_file import StageProgress, read_progress
from tests.training.tiny_training import STEPS, signal_at, train


def test_the_last_line_of_progress_names_steps_and_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tiny ")]
    assert lines[-1].startswith(f"tiny {STEPS}/{STEPS} (")
    assert "loss " in lines[-1]


def test_the_progress_file_follows_a_training_and_the_one_that_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=signal_at(2))
    stopped = read_progress(tmp_path)
    assert stopped is not None
    assert (stopped.step, stopped.total, stopped.unit) == (2, STEPS, "steps")
    assert stopped.seconds_per_step is not None and stopped.seconds_per_step > 0
    first: list[StageProgress | None] = []
    train(tmp_path, at_step=lambda module: first.append(read_progress(tmp_path)))
    assert first[0] is not None
    assert (first[0].step, first[0].seconds_per_step) == (2, None)  # known before the first step of this life is done
    done = read_progress(tmp_path)
    assert done is not None
    assert (done.step, done.seconds_left) == (STEPS, 0)
