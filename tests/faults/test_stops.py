"""A run that is stopped or killed, or whose data, memory or checkpoints fail it: the same command goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cogalign.data.caseset import METADATA
from tests.faults.conftest import RowCheck
from tests.faults.runs import STEPS, Ended, Runs, same

pytestmark = pytest.mark.slow


def test_a_run_that_is_stopped_and_killed_again_and_again_ends_as_if_it_had_not_been(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    """Checkpoints come every two steps, those of signals between them; the newest one is damaged at the end."""
    out = tmp_path / "run"
    found = [runs.of(out, "signal:SIGINT@4"), runs.of(out, "signal:SIGTERM@6")]
    for ended, step in zip(found, (5, 7), strict=True):
        assert ended.code == 130 and ended.steps == step and ended.stage["status"] == "interrupted"
    found += [runs.of(out, "signal:SIGKILL@9"), runs.of(out, "signal:SIGKILL@11")]
    assert [ended.code for ended in found[2:]] == [-signal.SIGKILL] * 2
    newest = max((out / "sft/checkpoints").glob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    last = runs.of(out)
    assert newest.name == "step-00000010.ckpt" and last.went_on_after == 8
    at_the_end = "signal handler, at the end of the step"
    row("Ctrl-C", at_the_end, found[0], found[1], whole, last=last)
    row("SIGTERM", at_the_end, found[1], found[2], whole, last=last)
    goes_on = "going on after"
    row("`kill -9`", "the next run", found[2], found[3], whole, last=last, message=found[3].line(goes_on))
    row("the newest checkpoint is damaged", "the reader of checkpoints", found[3], last, whole, message=last.error)


def test_a_killed_data_worker_ends_the_stage_with_what_to_do(
    runs: Runs, whole: Path, row: RowCheck, tmp_path: Path
) -> None:
    first = runs.of(tmp_path / "run", "worker", sft__workers=1)
    assert first.code == 1 and "lower sft.workers" in first.stage["message"] and "Traceback" not in first.output
    row("a data worker is killed (memory)", "its loader", first, runs.of(tmp_path / "run", sft__workers=1), whole)


def test_files_that_are_cut_off_are_named(runs: Runs, whole: Path, row: RowCheck, tmp_path: Path) -> None:
    """First the table, then images while a worker reads them, then while the main process does."""
    metadata = runs.data / METADATA
    lines = metadata.read_bytes()
    try:
        metadata.write_bytes(lines[:-40])
        table = runs.of(tmp_path / "run")
    finally:
        metadata.write_bytes(lines)
    assert table.code == 1 and table.steps == 0
    found = [table]
    for workers, at in ((1, 3), (0, 7)):
        ended = with_cut_images(runs, tmp_path / "run", f"images:{runs.data}@{at}", workers)
        assert ended.code == 1 and "Traceback" not in ended.output and len(ended.error.splitlines()) == 1
        found.append(ended)
    last = runs.of(tmp_path / "run")
    row("a line of the case set is cut off", "the reader of case sets", found[0], found[1], whole, last=last)
    reader = "the reader of images"
    row("an image is cut off, read in a data worker", reader, found[1], found[2], whole, last=last)
    row("an image is cut off, read in the main process", reader, found[2], last, whole)


def with_cut_images(runs: Runs, out: Path, fault: str, workers: int) -> Ended:
    """A run that finds its images cut; afterwards they are whole again."""
    images = {path: path.read_bytes() for path in (runs.data / "images").iterdir()}
    try:
        return runs.of(out, fault, sft__workers=workers)
    finally:
        for path, content in images.items():
            path.write_bytes(content)


def test_steps_that_are_not_finite_are_skipped_and_too_many_of_them_end_the_stage(
    runs: Runs, row: RowCheck, tmp_path: Path
) -> None:
    for number, (fault, name) in enumerate((("nan:1", "a loss is not finite"), ("inf", "a gradient is not finite"))):
        first = runs.of(tmp_path / str(number), fault)
        assert first.steps == STEPS
        assert list((tmp_path / str(number) / "sft/nonfinite").glob("step-00000006-rank-0.safetensors"))
        row(name, "every step", first, lost=skipped(first))
    first = runs.of(tmp_path / "run", "nan:9", trainer__nonfinite_limit=1)
    assert first.code == 1 and first.stage["status"] == "failed"
    second = runs.of(tmp_path / "run", trainer__nonfinite_limit=1)
    # the weights: of a run whose only such step is the one before the checkpoint
    one = tmp_path / "0"
    row("more losses in a row than `trainer.nonfinite_limit`", "every step", first, second, one)


def skipped(ended: Ended) -> str:
    """How many steps were not taken, for the table."""
    return f"{float(ended.rows[-1]['nonfinite_steps']):.0f}, not taken"


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
    assert first.steps == STEPS and first.stage["status"] == "finished"
    assert same(tmp_path / "run", whole)
    row("wandb cannot be reached", "its start", first)
