"""What SLURM prints, read; the texts are those of SLURM 22.05.8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cogalign.cluster import queue
from cogalign.cluster.queue import NoAnswer, Task, cancel, count_of, parse_jobs, parse_sacct, seconds_of, tasks

RUNNING = (
    "JobId=2005 ArrayJobId=2001 ArrayTaskId=1 ArrayTaskThrottle=2 JobName=my run UserId=root(0) MCS_label=N/A "
    "JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=3 BatchFlag=1 ExitCode=0:0 RunTime=1-00:02:05 "
    "TimeLimit=UNLIMITED Scheduler=Main AllocNode:Sid=localhost:9098 NodeList=n[1-2] BatchHost=n1 NumNodes=2 "
    "CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=1,node=1 Command=(null) WorkDir=/runs/a b "
    "StdErr=/runs/a b/c-2001_1.log StdIn=/dev/null StdOut=/runs/a b/c-2001_1.log Power= "
)
WAITING = (
    "JobId=2001 ArrayJobId=2001 ArrayTaskId=2-5%2 JobName=x JobState=PENDING Reason=JobArrayTaskLimit Restarts=0 "
    "ExitCode=0:0 RunTime=00:00:00 NodeList= StdOut=/runs/c-2001_4294967294.log Power= "
)
SERVER = (
    "JobId=2012 HetJobId=2012 HetJobOffset=0 JobName=g JobState=PENDING Reason=Dependency Restarts=0 NodeList=(null) \n"
    "JobId=2013 HetJobId=2012 HetJobOffset=1 JobName=g JobState=PENDING Reason=Dependency Restarts=0 NodeList=(null) \n"
)


def test_a_running_task_of_an_array_is_read_with_blanks_in_its_paths() -> None:
    assert parse_jobs(RUNNING) == [
        Task("2001", "RUNNING", "", 3, "n[1-2]", 86_525, "/runs/a b/c-2001_1.log", "0:0", index=1)
    ]


def test_tasks_that_wait_together_are_counted_and_have_no_log_yet() -> None:
    (task,) = parse_jobs(WAITING)
    assert (task.count, task.state, task.reason, task.log, task.index) == (4, "PENDING", "JobArrayTaskLimit", "", None)
    assert task.active
    assert not task.failed


def test_of_a_heterogeneous_job_the_part_with_the_script_counts() -> None:
    (task,) = parse_jobs(SERVER)
    assert (task.job_id, task.reason, task.nodes) == ("2012", "Dependency", "")


@pytest.mark.parametrize(("indices", "count"), [("2-5%2", 4), ("7", 1), ("0,3-5", 4), ("0-8:2", 5), ("", 1)])
def test_the_tasks_of_an_array_are_counted(indices: str, count: int) -> None:
    assert count_of(indices) == count


@pytest.mark.parametrize(
    ("duration", "seconds"), [("00:00:07", 7), ("01:02:03", 3723), ("2-00:00:01", 172_801), ("N/A", 0), ("", 0)]
)
def test_durations_are_seconds(duration: str, seconds: int) -> None:
    assert seconds_of(duration) == seconds


def test_the_accounting_is_read() -> None:
    text = (
        "17|COMPLETED|0:0|75|n1\n18_3|CANCELLED by 1000|0:15|0|None assigned\n18_[4-6%2]|PENDING|0:0|0|None assigned\n"
    )
    done, cancelled, waits = parse_sacct(text)
    assert done == Task("17", "COMPLETED", "", None, "n1", 75, "", "0:0")
    assert (cancelled.job_id, cancelled.state, cancelled.index, cancelled.nodes) == ("18", "CANCELLED", 3, "")
    assert (waits.job_id, waits.count, waits.index) == ("18", 3, None)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is alone on the search path of programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(folder / name, 0o755)


def test_a_machine_without_slurm_is_named(programs: Path) -> None:
    with pytest.raises(NoAnswer, match="scontrol is not on this machine"):
        tasks(["17"])


def test_a_controller_that_is_down_is_no_job_that_was_forgotten(programs: Path) -> None:
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(NoAnswer, match="Unable to contact slurm controller"):
        tasks(["17"])


def test_a_controller_that_hangs_is_not_waited_for_for_ever(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs, "scontrol", "exec /bin/sleep 60")
    monkeypatch.setattr(queue, "TIMEOUT", 0.3)
    with pytest.raises(NoAnswer, match="has not answered scontrol"):
        tasks(["17"])


def test_a_job_that_the_controller_has_forgotten_is_asked_of_the_accounting(programs: Path) -> None:
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert tasks(["17"]) == {"17": []}
    program(programs, "sacct", "echo '17|COMPLETED|0:0|75|n1'")
    assert [task.state for task in tasks(["17", "18"])["17"]] == ["COMPLETED"]
    assert tasks(["18"]) == {"18": []}


def test_cancelling_what_has_just_ended_is_no_error_and_what_is_not_allowed_is_one(programs: Path) -> None:
    program(
        programs, "scancel", "echo 'scancel: error: Kill job error on job id 17: Invalid job id specified' >&2; exit 1"
    )
    cancel("17")
    program(programs, "scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    with pytest.raises(ValueError, match=r"scancel 17: .*permission denied"):
        cancel("17")
