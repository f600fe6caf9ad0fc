"""The test cluster itself: what the other tests of this folder stand on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import Cluster


def test_a_job_of_two_nodes_sees_both_and_the_fake_gpus(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "ranks.txt"
    words = 'echo "rank=$SLURM_PROCID node=$SLURMD_NODENAME gpus=$CUDA_VISIBLE_DEVICES"'
    job = cluster.submit(
        "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:2", f"--output={log}", "--wrap", f"srun bash -c '{words}'"
    )
    (done,) = cluster.wait(job, seconds=60)
    assert done["NumNodes"] == "2"
    assert sorted(log.read_text().splitlines()) == ["rank=0 node=n1 gpus=0,1", "rank=1 node=n2 gpus=0,1"]


def test_a_requeued_job_starts_again_soon_and_is_counted(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n"
        'echo "start ${SLURM_RESTART_COUNT:-0}"\n'
        '[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] && { scontrol requeue "$SLURM_JOB_ID"; sleep 60; }\n'
        "exit 0\n"
    )
    job = cluster.submit("--requeue", "--open-mode=append", f"--output={log}", script)
    (done,) = cluster.wait(job, seconds=90)
    assert done["Restarts"] == "1"
    assert [line for line in log.read_text().splitlines() if line.startswith("start")] == ["start 0", "start 1"]


def test_all_tasks_of_an_array_are_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("--array=0-2", f"--output={tmp_path}/%a.txt", "--wrap", "sleep $SLURM_ARRAY_TASK_ID")
    assert len(cluster.wait(job, seconds=60)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt", "2.txt"]


def test_a_failed_job_is_shown_with_its_log(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(f"--output={tmp_path / 'log.txt'}", "--wrap", "echo no such shelf; exit 3")
    with pytest.raises(pytest.fail.Exception, match=r"FAILED(.|\n)*no such shelf"):
        cluster.wait(job, seconds=60)


@pytest.mark.skipif(not os.access("/etc/hosts", os.W_OK), reason="/etc/hosts cannot be written")
def test_the_nodes_have_names_that_resolve(cluster: Cluster) -> None:
    assert cluster.run("getent", "hosts", "n2").stdout.startswith("127.0.0.1")
