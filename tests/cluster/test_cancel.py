"""Which jobs are cancelled, and in which order; with a real SLURM: tests/slurm/test_status.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cogalign.cluster.cancel import cancel


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a job of each kind of state, and SLURM's programs, which note what is cancelled."""
    states = {"1": "COMPLETED", "2": "RUNNING", "3": "PENDING", "4": "FAILED", "5": "PENDING"}
    for job, state in states.items():
        (tmp_path / f"job.{job}").write_text(f"JobId={job} JobState={state} Reason=None NodeList=(null)\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\ncat {tmp_path}/job.$4\n")
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$1" >>{tmp_path}/cancelled\n')
    for name in ("scontrol", "scancel"):
        os.chmod(tmp_path / name, 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    jobs = {"data": "1", "sft": "2", "grpo": "3", "audit": "4", "evaluate": "5"}
    (tmp_path / "run" / "slurm" / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    return tmp_path / "run"


def test_what_waits_or_runs_is_cancelled_and_the_last_one_first(run: Path) -> None:
    assert cancel(run) == ["sft (job 2)", "grpo (job 3)", "evaluate (job 5)"]
    assert (run.parent / "cancelled").read_text().split() == ["5", "3", "2"]


def test_a_run_that_was_never_submitted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no slurm/jobs\.json"):
        cancel(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        cancel(tmp_path / "none")


def test_without_slurm_nothing_is_said_to_be_cancelled(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OSError, match="scontrol is not on this machine"):
        cancel(run)
