"""`cogalign status` and `cogalign cancel` on jobs of a real SLURM."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cogalign.cluster.cancel import cancel
from cogalign.cluster.status import RunStatus, status
from cogalign.cluster.status_text import problems, show

if TYPE_CHECKING:
    from tests.slurm.conftest import Cluster


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run without jobs yet; this process may ask the cluster."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    return tmp_path / "run"


def submit(cluster: Cluster, run: Path, **scripts: tuple[str, ...]) -> None:
    """A chain of jobs, each of which waits for the one before: job → options of sbatch and a command."""
    jobs: dict[str, str] = {}
    before: tuple[str, ...] = ()
    for name, (*options, command) in scripts.items():
        jobs[name] = cluster.submit(*before, "--requeue", *options, f"--output={run}/{name}.log", "--wrap", command)
        before = (f"--dependency=afterok:{jobs[name]}", "--kill-on-invalid-dep=yes")
    (run / "slurm" / "jobs.json").write_text(json.dumps({"jobs": jobs}))


def states(found: RunStatus) -> dict[str, dict[str, int]]:
    return {job.name: job.states for stage in found.stages for job in stage.jobs}


def until(run: Path, **wanted: dict[str, int]) -> RunStatus:
    """The run's status as soon as its jobs are in these states."""
    end = time.monotonic() + 60
    while True:
        found = status(run)
        if wanted.items() <= states(found).items():
            return found
        assert time.monotonic() < end, states(found)
        time.sleep(0.2)


def test_a_failed_job_and_those_that_waited_for_it_are_told_apart(cluster: Cluster, run: Path) -> None:
    submit(cluster, run, sft=("echo no such shelf; exit 3",), grpo=("true",))
    found = until(run, sft={"FAILED": 1}, grpo={"CANCELLED": 1})
    told = problems(found)
    assert found.failed
    assert told[0].startswith("sft (job ")
    assert " failed; submit again" in told[0]
    assert "  no such shelf" in told
    assert "grpo" in told[-1]
    assert "was cancelled before it began" in told[-1]


def test_tasks_of_an_array_are_counted_and_cancelling_lets_no_dependent_start(cluster: Cluster, run: Path) -> None:
    submit(cluster, run, counterfactual=("--array=0-3%2", "sleep 60"), grpo=("sleep 60",), evaluate=("true",))
    found = until(run, counterfactual={"RUNNING": 2, "PENDING": 2}, grpo={"PENDING": 1})
    text = show(found, 120)
    assert "2 pending, 2 running" in text
    assert "pending (Dependency)" in text
    assert not found.failed
    assert [one.split()[0] for one in cancel(run)] == ["counterfactual", "grpo", "evaluate"]
    found = until(run, counterfactual={"CANCELLED": 4}, grpo={"CANCELLED": 1}, evaluate={"CANCELLED": 1})
    assert not list(run.glob("evaluate.log"))
    assert cancel(run) == []


def test_a_requeued_job_shows_its_restart(cluster: Cluster, run: Path) -> None:
    submit(cluster, run, sft=('[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }',))
    (job,) = until(run, sft={"COMPLETED": 1}).stages[0].jobs
    assert job.restarts == 1
    assert job.nodes in ("n1", "n2")
