"""What `cogalign status` knows from the files of a run, and how it tells it; with a real SLURM: tests/slurm/test_status.py."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cogalign.cluster.status import as_json, last_lines, status
from cogalign.cluster.status_text import problems, show
from cogalign.training.progress_file import write_progress
from cogalign.training.stage_file import StageFile, Status


def stage(run: Path, name: str, state: Status, message: str | None = None, seconds: float = 0.0) -> None:
    StageFile(stage=name, digest="d", status=state, message=message, seconds=seconds).write(run / name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four stages: two done, one that a lock says is at work, one not begun."""
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: a\nstages: [sft, grpo, evaluate]\n")
    stage(run, "data", "finished", seconds=3)
    stage(run, "sft", "finished", seconds=4000)
    stage(run, "grpo", "running")
    write_progress(run / "grpo", 30, 120, 2.0)
    return run


@pytest.fixture
def at_work(run: Path) -> object:
    """The lock of the stage grpo, held."""
    (run / ".locks").mkdir()
    file = open(run / ".locks" / "grpo", "w")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.fixture
def slurm(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str], dict[str, str]], None]:
    """Give the run jobs, and a program `scontrol` that says these lines about them; None: it forgot them."""
    programs = run.parent / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(
        f"#!/bin/sh\ncat {programs}/job.$4 2>/dev/null || {{ echo 'Invalid job id specified' >&2; exit 1; }}\n"
    )
    os.chmod(programs / "scontrol", 0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def give(jobs: dict[str, str], lines: dict[str, str]) -> None:
        (run / "slurm").mkdir(exist_ok=True)
        (run / "slurm" / "jobs.json").write_text(json.dumps({"jobs": jobs}))
        for job, text in lines.items():
            array = "" if "ArrayJobId" in text else f"JobId={job} "
            (programs / f"job.{job}").write_text("".join(f"{array}{line}\n" for line in text.splitlines()))

    return give


@pytest.mark.usefixtures("at_work")
def test_a_run_without_slurm_shows_its_stages_with_steps_and_time_left(run: Path) -> None:
    found = status(run)
    assert [(one.name, one.state) for one in found.stages] == [
        ("data", "finished"), ("sft", "finished"), ("grpo", "running"), ("evaluate", ""),
    ]  # fmt: skip
    assert found.stages[2].seconds_left == pytest.approx(180, abs=20)
    assert not found.failed
    lines = show(found, 100).splitlines()
    assert lines[3].split() == ["sft", "finished", "1h06m"]
    assert lines[4].split()[:4] == ["grpo", "running", "30/120", "steps"]
    assert lines[5].split() == ["evaluate", "not", "begun"]
    assert problems(found) == []


def test_a_stage_that_was_killed_is_told_from_one_that_runs(run: Path) -> None:
    found = status(run)
    assert found.stages[2].state == "ended"
    assert found.failed
    assert problems(found) == [
        "grpo was begun, and nobody works on it any more (killed?); run the same command again to go on"
    ]


def test_a_failed_stage_tells_its_message(run: Path) -> None:
    stage(run, "grpo", "failed", "grpo.beta: found -1, wanted 0 or more")
    (line,) = problems(status(run))
    assert line == "grpo failed: grpo.beta: found -1, wanted 0 or more; run the same command again to go on"


def test_an_interrupted_stage_is_no_failure(run: Path) -> None:
    stage(run, "grpo", "interrupted")
    assert not status(run).failed


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "x").mkdir()
    with pytest.raises(FileNotFoundError, match="wanted"):
        status(tmp_path / "x")


JOB = "JobName=j JobState={} Reason={} Restarts={} RunTime=00:01:00 NodeList={} StdOut={}"


def test_jobs_stand_beside_their_stages_with_restarts_and_nodes(run: Path, slurm: Callable[..., None]) -> None:
    slurm(
        {"sft": "7", "grpo": "8", "evaluate": "9"},
        {"7": JOB.format("COMPLETED", "None", 0, "n1", "x"), "8": JOB.format("RUNNING", "None", 2, "n[1-2]", "x"),
         "9": "JobName=j JobState=PENDING Reason=Dependency Restarts=0 RunTime=00:00:00 NodeList=(null)"},
    )  # fmt: skip
    found = status(run)
    assert not found.failed
    lines = show(found, 110).splitlines()
    assert lines[3].split() == ["sft", "completed", "7", "1m00s", "n1"]
    grpo = lines[4].split()
    assert grpo[:6] == ["grpo", "running", "8", "2", "30/120", "steps"]
    assert grpo[-2:] == ["1m00s", "n[1-2]"]
    assert lines[5].split() == ["evaluate", "pending", "(Dependency)", "9"]
    assert len(lines) == 6


def test_an_array_is_counted_by_state_and_its_restarts_are_added_up(run: Path, slurm: Callable[..., None]) -> None:
    task = "JobId=2{0} ArrayJobId=20 ArrayTaskId={0} JobState={1} Restarts={2} NodeList=n1 RunTime=00:00:0{0} StdOut=x"
    rest = "JobId=20 ArrayJobId=20 ArrayTaskId=4-7%2 JobState=PENDING Reason=JobArrayTaskLimit Restarts=0"
    lines = [task.format(1, "COMPLETED", 1), task.format(2, "RUNNING", 2), task.format(3, "RUNNING", 0), rest]
    slurm({"counterfactual": "20"}, {"20": "\n".join(lines)})
    (job,) = next(one for one in status(run).stages if one.name == "counterfactual").jobs
    assert job.states == {"COMPLETED": 1, "RUNNING": 2, "PENDING": 4}
    assert (job.restarts, job.seconds) == (3, 3)
    assert "1 completed, 4 pending, 2 running" in show(status(run), 120)


def test_the_shards_of_an_array_are_added_up(run: Path) -> None:
    stage(run, "counterfactual", "partial")
    folder = run / "counterfactual" / "shards"
    write_progress(folder / "0-of-9", 1, 10, 1.0, "cases")  # of an earlier division
    old = folder / "0-of-9" / "progress.json"
    old.write_text(old.read_text().replace('"time": "20', '"time": "10'))
    write_progress(folder / "0-of-2", 30, 40, 3.0, "cases")

    def found() -> tuple[int, int | None, float | None]:
        progress = next(one for one in status(run).stages if one.name == "counterfactual").progress
        assert progress is not None
        return progress.step, progress.total, progress.seconds_left

    assert found() == (30, None, None)  # the other one has not begun
    write_progress(folder / "1-of-2", 10, 40, 2.0, "cases")
    assert found() == (40, 80, pytest.approx(60))
    assert "40/80 cases" in show(status(run))


def test_a_failed_job_is_shown_with_the_end_of_its_log_and_what_to_do(run: Path, slurm: Callable[..., None]) -> None:
    log = run / "grpo-8.log"
    log.write_text("".join(f"0: line {number}\n\n" for number in range(100)) + "0: CUDA error: no such shelf\n")
    stage(run, "grpo", "failed", "no such shelf")
    slurm({"grpo": "8", "evaluate": "9"},
          {"8": JOB.format("FAILED", "NonZeroExitCode", 0, "n1", log),
           "9": JOB.format("CANCELLED", "DependencyNeverSatisfied", 0, "(null)", "x")})  # fmt: skip
    found = status(run)
    assert found.failed
    told = problems(found)
    assert told[0] == "grpo (job 8) failed: no such shelf; submit again to go on: what is finished is skipped"
    assert told[1] == f"the end of {log}:"
    assert told[-2] == "  0: CUDA error: no such shelf"
    assert "  0: line 99" in told
    assert "  0: line 50" not in told
    assert told[-1].startswith("evaluate (job 9) was cancelled before it began")


@pytest.mark.parametrize(("state", "told"), [
    ("TIMEOUT", "time limit"), ("OUT_OF_MEMORY", "raise `memory`"), ("NODE_FAIL", "node failed"),
])  # fmt: skip
def test_the_cause_of_a_failure_is_told(run: Path, slurm: Callable[..., None], state: str, told: str) -> None:
    slurm({"grpo": "8"}, {"8": JOB.format(state, "None", 0, "n1", "x")})
    assert told in problems(status(run))[0]


def test_a_job_that_waits_for_what_it_will_never_get_is_told(run: Path, slurm: Callable[..., None]) -> None:
    slurm({"grpo": "8", "evaluate": "9"},
          {"8": JOB.format("PENDING", "PartitionTimeLimit", 0, "(null)", "x"),
           "9": JOB.format("PENDING", "Priority", 0, "(null)", "x")})  # fmt: skip
    (line,) = problems(status(run))
    assert (
        line == "grpo (job 8) waits: asks for more time than the partition gives: lower `time` in the cluster profile"
    )


def test_a_stage_whose_jobs_are_over_does_not_run(run: Path, slurm: Callable[..., None]) -> None:
    slurm({"grpo": "8"}, {"8": JOB.format("NODE_FAIL", "None", 0, "n1", "x")})
    assert next(one for one in status(run).stages if one.name == "grpo").state == "ended"


def test_a_finished_stage_makes_up_for_a_job_that_failed(run: Path, slurm: Callable[..., None]) -> None:
    slurm({"sft": "7"}, {"7": JOB.format("NODE_FAIL", "None", 0, "n1", "x")})
    sft = next(one for one in status(run).stages if one.name == "sft")
    assert not sft.failed


def test_of_jobs_that_slurm_has_forgotten_the_markers_tell(run: Path, slurm: Callable[..., None]) -> None:
    slurm({"sft": "7", "counterfactual": "20", "grpo": "8"}, {})
    for name, text in {"sft": "7", "counterfactual_0": "20_0", "counterfactual_1": "20_1", "grpo": "5"}.items():
        (run / "slurm" / f"{name}.finished").write_text(f"{text}\n")
    states = {job.name: job.states for one in status(run).stages for job in one.jobs}
    assert states == {"sft": {"COMPLETED": 1}, "counterfactual": {"COMPLETED": 2}, "grpo": {}}


def test_without_slurm_on_the_machine_the_files_still_tell(
    run: Path, slurm: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm({"sft": "7", "grpo": "8"}, {})
    monkeypatch.setenv("PATH", "/nowhere")
    found = status(run)
    assert "scontrol is not on this machine" in show(found)
    assert [one.state for one in found.stages] == ["finished", "finished", "running", ""]  # not known to be over
    assert not found.failed


def test_the_json_holds_all_that_is_known(run: Path, slurm: Callable[..., None]) -> None:
    slurm({"grpo": "8"}, {"8": JOB.format("RUNNING", "None", 2, "n1", "x")})
    content = json.loads(as_json(status(run)))
    grpo = content["stages"][2]
    assert (grpo["name"], grpo["progress"]["step"], grpo["jobs"][0]["restarts"]) == ("grpo", 30, 2)
    assert content["failed"] is False


def test_a_damaged_list_of_jobs_is_named(run: Path) -> None:
    (run / "slurm").mkdir()
    (run / "slurm" / "jobs.json").write_text('{"sft": "x"}')
    with pytest.raises(ValueError, match=r"jobs\.json: found .*wanted job names with their numbers"):
        status(run)


def test_the_end_of_a_log_leaves_out_what_a_bar_has_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a\n\n10%\r50%\r90%\n\xff\n")
    assert last_lines(log) == ["a", "90%", "\ufffd"]
    assert last_lines(tmp_path / "none") == []
