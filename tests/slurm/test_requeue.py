"""Jobs that get SIGUSR1, as before a time limit or when they are preempted: put back, gone on with, bit for bit."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cogalign.cluster.status import status
from tests.slurm.small_run import CYCLE, RECIPE, SECONDS, pictures, steps_saved, submit, until, weights
from tests.wandb_files import history_rows

if TYPE_CHECKING:
    from tests.slurm.conftest import Cluster

pytestmark = pytest.mark.timeout(1800)
TRIES = 4
"""Signals to the job grpo until one of them has come inside a generation cycle."""


@dataclass
class Stopped:
    """A run whose jobs were signalled.

    Attributes:
        run: its folder.
        jobs: job → number.
        saved: job → the steps that were saved when signals came.
    """

    run: Path
    jobs: dict[str, str]
    saved: dict[str, list[int]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def stopped(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """The small recipe as a chain of jobs: USR1 in SFT, in one shard of the array, and in a generation cycle of GRPO."""
    folder = tmp_path_factory.mktemp("stopped")
    run = folder / "run"
    found = Stopped(run, submit(cluster, folder, run, "--stages", "[sft, counterfactual, grpo]"))
    with ThreadPoolExecutor() as pool:  # SFT and the array run at the same time
        for done in [pool.submit(stop, cluster, found) for stop in (_stop_sft, _stop_shard, _stop_grpo)]:
            done.result()
    for job in found.jobs.values():
        cluster.wait(job, seconds=SECONDS)
    return found


def _stop_sft(cluster: Cluster, found: Stopped) -> None:
    _stop(cluster, found, "sft", 4)


def _stop_shard(cluster: Cluster, found: Stopped) -> None:
    array = found.jobs["counterfactual"]
    until(cluster, array, lambda: bool(_parts_of_shard(found.run)))
    cluster.run("scancel", "--signal=USR1", f"{array}_0")


def _parts_of_shard(run: Path) -> list[Path]:
    """The lists of pictures that shard 0 has made, one for each of its lives in which it made some."""
    return [path for path in (run / "counterfactual").glob("parts-*/rank-0-of-2-*.jsonl") if path.stat().st_size]


def _stop_grpo(cluster: Cluster, found: Stopped) -> None:
    """Until a signal has come inside a generation cycle."""
    for _ in range(TRIES):
        _stop(cluster, found, "grpo", steps_saved(found.run, "grpo") // CYCLE * CYCLE + 1)
        if found.saved["grpo"][-1] % CYCLE:
            return


def _stop(cluster: Cluster, found: Stopped, job: str, step: int) -> None:
    """Signal a job as soon as a step of it is saved, and wait until it has been put back into the queue."""
    number = found.jobs[job]
    before = int(cluster.job(number)["Restarts"])
    until(cluster, number, lambda: steps_saved(found.run, job) >= step and cluster.job(number)["JobState"] == "RUNNING")
    cluster.run("scancel", "--signal=USR1", number)
    until(cluster, number, lambda: int(cluster.job(number)["Restarts"]) > before)
    log = Path(cluster.job(number)["StdOut"]).read_text()
    found.saved.setdefault(job, []).append(int(re.findall(r"step (\d+) is saved", log)[-1]))


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_weights_are_those_of_a_run_that_nothing_has_disturbed(
    stopped: Stopped, whole_run: Path, stage: str
) -> None:
    assert weights(stopped.run, stage) == weights(whole_run, stage)


def test_sft_was_stopped_in_the_middle_and_grpo_inside_a_generation_cycle(stopped: Stopped) -> None:
    assert 4 <= stopped.saved["sft"][0] < RECIPE["sft"]["steps"]
    assert stopped.saved["grpo"][-1] % CYCLE != 0
    assert stopped.saved["grpo"][-1] < RECIPE["grpo"]["steps"]


def test_the_counterfactuals_are_those_of_shards_that_nothing_has_disturbed(stopped: Stopped, whole_run: Path) -> None:
    assert len(_parts_of_shard(stopped.run)) == 2
    assert pictures(stopped.run) == pictures(whole_run)


def test_restarts_are_counted_and_markers_hold_the_jobs_that_finished(cluster: Cluster, stopped: Stopped) -> None:
    jobs = stopped.jobs
    assert cluster.job(jobs["sft"])["Restarts"] == "1"
    assert cluster.job(jobs["grpo"])["Restarts"] == str(len(stopped.saved["grpo"]))
    array = {task["ArrayTaskId"]: task["Restarts"] for task in cluster.tasks(jobs["counterfactual"])}
    assert array == {"0": "1", "1": "0"}
    folder = stopped.run / "slurm"
    assert (folder / "sft.finished").read_text().strip() == jobs["sft"]
    assert (folder / "counterfactual_0.finished").read_text().strip() == f"{jobs['counterfactual']}_0"
    assert not list(folder.glob("*.requeue"))


def test_status_shows_the_restarts(cluster: Cluster, stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])
    found = {stage.name: stage for stage in status(stopped.run).stages}
    assert [job.restarts for job in found["counterfactual"].jobs] == [0, 1, 0]
    assert found["sft"].progress is not None
    assert found["sft"].progress.restarts == 1
    assert json.loads((stopped.run / "sft" / "stage.json").read_text())["resumed"] == 1


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_wandb_has_every_step_once_over_all_lives_of_a_job(stopped: Stopped, stage: str) -> None:
    own = (stopped.run / stage / "wandb_id.txt").read_text().strip()
    steps = [row["_step"] for row in history_rows(stopped.run, own)]
    assert steps == list(range(1, RECIPE[stage]["steps"] + 1))


def test_a_finished_job_that_is_put_back_does_nothing(cluster: Cluster, stopped: Stopped) -> None:
    job = stopped.jobs["sft"]
    before = weights(stopped.run, "sft")
    changed = (stopped.run / "sft" / "stage.json").stat().st_mtime_ns
    cluster.run("scontrol", "requeue", job)
    (done,) = cluster.wait(job, seconds=SECONDS)
    assert done["Restarts"] == "2"
    assert "finished before, nothing to do" in Path(done["StdOut"]).read_text()
    assert weights(stopped.run, "sft") == before
    assert (stopped.run / "sft" / "stage.json").stat().st_mtime_ns == changed
