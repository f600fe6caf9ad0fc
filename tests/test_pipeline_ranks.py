"""Processes beside the main one: they take part, wait, and never for ever. All with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cogalign.training.atomic import write_json
from cogalign.training.launched import RANKS, is_main_process
from cogalign.training.stage_file import StageFile, mark_failed, read_stage_file
from tests.pipeline_process import LIMIT, calls, command, until

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
MAIN, BESIDE = {**STEP, "SLURM_PROCID": "0"}, {**STEP, "SLURM_PROCID": "1"}


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process that ends by itself."""
    said, _ = process.communicate(timeout=LIMIT)
    return process.returncode, said


def test_all_ranks_train_and_the_first_does_the_rest(tmp_path: Path) -> None:
    run, stages = tmp_path / "run", ["sft", "evaluate"]
    with command(run, stages, BESIDE) as beside, command(run, stages, MAIN) as main:
        assert ended(main)[0] == 0
        assert ended(beside)[0] == 0
    assert sorted(calls(run)) == ["data 0", "evaluate 0", "sft 0", "sft 1"]


def test_a_second_start_skips_on_all_ranks_and_forced_stages_run_again_on_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for options in ({}, {}, {"force": True}):
        with command(run, ["sft"], BESIDE, **options) as beside, command(run, ["sft"], MAIN, **options) as main:
            assert ended(main)[0] == ended(beside)[0] == 0
    assert sorted(calls(run)) == ["data 0", "sft 0", "sft 0", "sft 1", "sft 1"]


@pytest.mark.parametrize("stage", ["data", "evaluate"])
def test_an_error_of_the_main_process_ends_those_that_wait_for_it(tmp_path: Path, stage: str) -> None:
    run, stages = tmp_path / "run", ["sft", "evaluate"]
    fail: dict[str, Any] = {"fail": {stage: "the disk is on fire"}}
    with command(run, stages, BESIDE) as beside, command(run, stages, MAIN, **fail) as main:
        assert ended(main)[0] == 1
        code, said = ended(beside)
    assert code == 1 and f"error: {stage}: failed in the main process: the disk is on fire" in said


def test_a_main_process_that_is_refused_ends_those_that_wait_for_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with command(run, ["sft"], hold={"sft": str(tmp_path / "never")}, devices=1):
        until(lambda: "sft 0" in calls(run))
        with command(run, ["sft"], BESIDE) as beside, command(run, ["sft"], MAIN) as main:
            assert ended(main)[0] == 1
            code, said = ended(beside)
    assert code == 1 and "the main process has ended" in said and "another cogalign run is writing here" in said


def test_a_stopped_main_process_stops_those_that_wait_for_it(tmp_path: Path) -> None:
    run, stages = tmp_path / "run", ["evaluate"]
    with (
        command(run, ["sft"], BESIDE) as beside,
        command(run, ["sft"], MAIN) as main,
    ):
        assert ended(main)[0] == ended(beside)[0] == 0
    hold = {"evaluate": str(tmp_path / "never")}
    with command(run, stages, BESIDE) as beside, command(run, stages, MAIN, hold=hold) as main:
        until(lambda: "evaluate 0" in calls(run))
        main.send_signal(signal.SIGTERM)
        assert ended(main)[0] == 130
        code, said = ended(beside)
    assert code == 130 and "the main process was stopped" in said


def test_a_main_process_without_a_sign_of_life_is_not_waited_for(tmp_path: Path) -> None:
    """Killed on another node: no signal, no parent, no word in stage.json."""
    run, stages = tmp_path / "run", ["evaluate"]
    hold = {"evaluate": str(tmp_path / "never")}
    with command(run, stages, BESIDE, timeout=8.0) as beside, command(run, stages, MAIN, hold=hold) as main:
        until(lambda: "evaluate 0" in calls(run))
        time.sleep(10)
        assert beside.poll() is None  # the stage gives no sign, but its process does
        main.kill()
        code, said = ended(beside)
    assert code == 1 and "no sign of life of the main process" in said and "trainer.timeout 8" in said


def test_a_stage_that_the_watchdog_marks_as_failed_ends_those_that_wait(tmp_path: Path) -> None:
    run, stages = tmp_path / "run", ["evaluate"]
    hold = {"evaluate": str(tmp_path / "never")}
    with command(run, stages, BESIDE) as beside, command(run, stages, MAIN, hold=hold) as main:
        until(lambda: "evaluate 0" in calls(run))
        main.kill()
        mark_failed(run / "evaluate", "rank 0 hangs in barrier")
        code, said = ended(beside)
    assert code == 1 and "evaluate: failed in the main process: rank 0 hangs in barrier" in said


def test_a_case_set_that_is_edited_while_a_run_starts_is_told_of_and_not_waited_for(tmp_path: Path) -> None:
    run, table, gate = tmp_path / "run", tmp_path / "cases" / "metadata.jsonl", tmp_path / "gate"
    table.parent.mkdir()
    table.write_text("{}\n")
    given: dict[str, Any] = {"case_set": str(table.parent), "late": 2.0, "hold": {"sft": str(gate)}}
    with command(run, ["sft"], BESIDE, **given) as beside, command(run, ["sft"], MAIN, **given) as main:
        until(lambda: {"sft 0", "sft 1"} <= set(calls(run)))  # the data's digest, and all that comes from it, is known
        main.kill()
        main.wait()
        beside.kill()
    table.write_text("{ }\n")
    content = json.loads((run / "data" / "stage.json").read_text())
    with command(run, ["sft"], BESIDE, **given) as beside:
        decision = {"run": True, "digest": "of the case set before", "started": content["started"], "resumed": 0}
        end = time.monotonic() + LIMIT
        for beat in count():
            if beside.poll() is not None or time.monotonic() > end:
                break
            announce(run, beat, {"data": {"run": False}, "sft": decision})
            time.sleep(0.2)
        code, said = ended(beside)
    assert code == 1 and "sft: this process (SLURM_PROCID=1) sees other settings or inputs than the main one" in said


def announce(run: Path, beat: int, stages: dict[str, Any]) -> None:
    """What a main process writes that has taken these decisions."""
    path = run / ".ranks" / "slurm-7-0-0.json"
    write_json(path, {"beat": 100 + beat, "stages": stages, "ended": None, "id": "x"})


def test_the_main_process_is_the_first_of_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    assert is_main_process()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert is_main_process()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "2")  # torchrun: the first process of the second node
    assert not is_main_process()


def test_marking_as_failed_touches_running_stages_only(tmp_path: Path) -> None:
    mark_failed(tmp_path, "x")
    assert read_stage_file(tmp_path) is None
    StageFile("sft", "d", status="finished").write(tmp_path)
    mark_failed(tmp_path, "x")
    found = read_stage_file(tmp_path)
    assert found is not None and found.status == "finished"
    StageFile("sft", "d").write(tmp_path)
    mark_failed(tmp_path, "x")
    found = read_stage_file(tmp_path)
    assert found is not None and (found.status, found.message) == ("failed", "x") and found.finished


def test_a_process_that_the_main_one_starts_takes_part_and_ends_with_it(tmp_path: Path) -> None:
    run, gate = tmp_path / "run", tmp_path / "gate"
    with command(run, ["sft", "evaluate"], spawn=True, hold={"sft": str(gate)}) as main:
        until(lambda: "sft 1" in calls(run))
        gate.touch()
        assert ended(main)[0] == 0
    assert sorted(calls(run)) == ["data 0", "evaluate 0", "sft 0", "sft 1"]


def test_an_orphan_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with command(run, ["sft"], spawn=True, hold={"sft": str(tmp_path / "never")}) as main:
        until(lambda: "sft 1" in calls(run))
        main.kill()
        said, _ = main.communicate(timeout=LIMIT)  # the pipe is closed only when the other one has ended too
    assert "error: sft: the main process has ended, so this one ends too" in said
