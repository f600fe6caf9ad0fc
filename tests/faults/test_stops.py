"""A run that is stopped or killed, or whose data, memory or checkpoints fail it: the same command goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cogalign.data.caseset import METADATA
from tests.faults.conftest import EVERY, STEPS, Runs, same
from tests.faults.inject import AT

pytestmark = pytest.mark.slow
RowCheck = Callable[..., None]


@pytest.mark.parametrize(("name", "fault"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM")])
def test_a_signal_ends_the_step_saves_it_and_loses_nothing(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path, name: str, fault: str
) -> None:
    first = runs.of(tmp_path / "run", f"signal:{name}")
    assert first.code == 130 and first.steps == AT + 1 and first.stage["status"] == "interrupted"
    row(fault, "signal handler, at the end of the step", first, runs.of(tmp_path / "run"), whole)


def test_kill_9_loses_the_steps_since_the_last_checkpoint(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    first = runs.of(tmp_path / "run", "signal:SIGKILL")
    assert first.code == -signal.SIGKILL
    row("`kill -9`", "the next run", first, runs.of(tmp_path / "run"), whole)


def test_a_killed_data_worker_ends_the_stage_with_what_to_do(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    first = runs.of(tmp_path / "run", "worker", sft__workers=1)
    assert first.code == 1 and "lower sft.workers" in first.stage["message"] and "Traceback" not in first.output
    row("a data worker is killed (memory)", "its loader", first, runs.of(tmp_path / "run", sft__workers=1), whole)


@pytest.mark.parametrize(("workers", "where"), [(0, "in the main process"), (1, "in a data worker")])
def test_an_image_that_is_cut_off_while_training_is_named(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path, workers: int, where: str
) -> None:
    images = {path: path.read_bytes() for path in (runs.data / "images").iterdir()}
    try:
        first = runs.of(tmp_path / "run", f"images:{runs.data}", sft__workers=workers)
    finally:
        for path, content in images.items():
            path.write_bytes(content)
    assert first.code == 1 and "Traceback" not in first.output and len(first.error.splitlines()) == 1
    second = runs.of(tmp_path / "run", sft__workers=workers)
    row(f"an image is cut off, read {where}", "the reader of images", first, second, whole)


def test_a_case_set_with_a_cut_line_is_refused_with_its_number(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    metadata = runs.data / METADATA
    lines = metadata.read_bytes()
    try:
        metadata.write_bytes(lines[:-40])
        first = runs.of(tmp_path / "run")
    finally:
        metadata.write_bytes(lines)
    assert first.code == 1 and first.steps == 0
    row("a line of the case set is cut off", "the reader of case sets", first, runs.of(tmp_path / "run"), whole)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    first = runs.of(tmp_path / "run", "signal:SIGKILL")
    newest = max((tmp_path / "run/sft/checkpoints").glob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    second = runs.of(tmp_path / "run")
    assert second.went_on_after == AT - AT % EVERY - EVERY
    first.output = second.output  # the message comes from the run that reads it
    row("the newest checkpoint is damaged", "the reader of checkpoints", first, second, whole)


def test_steps_that_are_not_finite_are_skipped(runs: Runs, row: RowCheck, tmp_path: Path) -> None:
    for number, (fault, name) in enumerate((("nan:1", "a loss is not finite"), ("inf", "a gradient is not finite"))):
        first = runs.of(tmp_path / str(number), fault)
        assert first.code == 0 and first.steps == STEPS
        assert list((tmp_path / str(number) / "sft/nonfinite").glob("step-00000006-rank-0.safetensors"))
        row(name, "every step", first, None, None)


def test_too_many_steps_that_are_not_finite_end_the_stage(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    first = runs.of(tmp_path / "run", "nan:9", trainer__nonfinite_limit=1)
    assert first.code == 1 and first.stage["status"] == "failed"
    second = runs.of(tmp_path / "run", trainer__nonfinite_limit=1)
    row("more losses in a row than `trainer.nonfinite_limit`", "every step", first, second, None)
    assert second.code == 0


def test_a_process_that_hangs_is_ended_with_the_place_where_it_stands(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    first = runs.of(tmp_path / "run", "hang:0", trainer__timeout=8.0)
    assert first.code == 124 and first.stage["status"] == "failed"
    assert "tests/faults/inject.py" in (tmp_path / "run/sft/watchdog/rank-0.txt").read_text()
    row("a process hangs", "the watchdog", first, runs.of(tmp_path / "run"), whole)


def test_a_wandb_server_that_nobody_reaches_costs_no_step_and_no_row(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    monkeypatch.setattr(runs, "environment", nowhere)
    first = runs.of(tmp_path / "run", tracking__wandb=True)
    assert first.code == 0 and first.steps == STEPS and first.stage["status"] == "finished"
    assert same(tmp_path / "run", whole)
    row("wandb cannot be reached", "its start", first, None, None)
