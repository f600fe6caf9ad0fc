"""Several commands in one run folder at the same time, as real processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cogalign.pipeline_locks import RunLocks
from cogalign.training.stage_file import StageFile, read_stage_file
from tests.pipeline_process import LIMIT, calls, command, until


def status(run_dir: Path, stage: str) -> str | None:
    found = read_stage_file(run_dir / stage)
    return None if found is None else found.status


def test_stages_of_one_run_run_at_the_same_time_and_the_summary_holds_all(tmp_path: Path) -> None:
    run, gate = tmp_path / "run", tmp_path / "gate"
    hold = {stage: str(gate) for stage in ("sft", "counterfactual", "segmenter")}
    with (
        command(run, ["sft"], hold=hold) as first,
        command(run, ["counterfactual"], hold=hold) as second,
        command(run, ["segmenter"], hold=hold) as third,
    ):
        until(lambda: {"sft 0", "counterfactual 0", "segmenter 0"} <= set(calls(run)))
        assert status(run, "sft") == status(run, "counterfactual") == status(run, "segmenter") == "running"
        gate.touch()
        for process in (first, second, third):
            assert process.wait(LIMIT) == 0
    assert calls(run).count("data 0") == 1
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert {name: one["status"] for name, one in stages.items()} == dict.fromkeys(
        ("data", "segmenter", "sft", "counterfactual"), "finished"
    )


def test_data_that_another_command_makes_are_waited_for_and_made_once(tmp_path: Path) -> None:
    run, gate = tmp_path / "run", tmp_path / "gate"
    with command(run, ["sft"], hold={"data": str(gate)}) as first:
        until(lambda: "data 0" in calls(run))
        with command(run, ["counterfactual"]) as second:
            assert second.stdout is not None
            assert "data: another command makes or uses it" in second.stdout.readline()
            assert "counterfactual 0" not in calls(run)
            gate.touch()
            said, _ = second.communicate(timeout=LIMIT)
            assert second.returncode == 0 and "data: finished before, skipped" in said
        assert first.wait(LIMIT) == 0
    assert sorted(calls(run)) == ["counterfactual 0", "data 0", "sft 0"]


def test_a_signal_ends_the_wait_for_data(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with command(run, ["sft"], hold={"data": str(tmp_path / "never")}):
        until(lambda: "data 0" in calls(run))
        with command(run, ["sft"]) as second:
            assert second.stdout is not None
            assert "this one waits" in second.stdout.readline()
            second.send_signal(signal.SIGTERM)
            said, _ = second.communicate(timeout=LIMIT)
            assert second.returncode == 130 and "Interrupted: SIGTERM" in said
        assert status(run, "data") == "running"


def test_the_same_stage_and_the_whole_run_are_refused_while_a_stage_runs(tmp_path: Path) -> None:
    run, gate = tmp_path / "run", tmp_path / "gate"
    with command(run, ["sft"], hold={"sft": str(gate)}) as first:
        until(lambda: "sft 0" in calls(run))
        for stages, where in ((["sft"], "(sft)"), (None, "")):
            with command(run, stages) as other:
                said, _ = other.communicate(timeout=LIMIT)
                assert other.returncode == 1
                assert f"error: {run}: another cogalign run is writing here{where and ' ' + where}; wait" in said
        gate.touch()
        assert first.wait(LIMIT) == 0
    assert calls(run) == ["data 0", "sft 0"]


def test_a_killed_command_leaves_no_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with command(run, ["sft"], hold={"sft": str(tmp_path / "never")}) as first:
        until(lambda: "sft 0" in calls(run))
        os.kill(first.pid, signal.SIGKILL)
        first.wait(LIMIT)
    with command(run, ["sft"]) as second:
        said, _ = second.communicate(timeout=LIMIT)
        assert second.returncode == 0 and "sft: not finished (running), going on" in said


def test_results_that_another_command_reads_are_not_made_anew_meanwhile(tmp_path: Path) -> None:
    with (
        RunLocks(tmp_path, alone=False) as reader,
        RunLocks(tmp_path, alone=False) as second,
        pytest.raises(ValueError, match=r"writing here \(sft\)"),
    ):
        reader.read("sft")
        second.read("sft")
        second.release("sft")
        second.write("sft")


def test_a_process_beside_the_main_one_takes_no_locks(tmp_path: Path) -> None:
    with RunLocks(tmp_path, alone=True), RunLocks(tmp_path, alone=True, active=False) as follower:
        follower.write("sft")


def test_the_summary_tells_of_stages_that_other_commands_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with command(run, ["sft"]) as process:
        assert process.wait(LIMIT) == 0
    StageFile("grpo", "x", status="interrupted").write(run / "grpo")
    with command(run, ["sft"]) as process:
        assert process.wait(LIMIT) == 0
    assert json.loads((run / "summary.json").read_text())["stages"]["grpo"]["status"] == "interrupted"


def test_a_stage_does_not_read_what_another_command_is_writing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with command(run, ["sft"]) as first:
        assert first.wait(LIMIT) == 0
    with command(run, ["sft"], force=True, hold={"sft": str(tmp_path / "never")}):
        until(lambda: calls(run).count("sft 0") == 2)
        with command(run, ["evaluate"]) as second:
            said, _ = second.communicate(timeout=LIMIT)
            assert second.returncode == 1 and "writing here (sft)" in said
