"""Every job script of every profile in `slurm/`, run on a real cluster with a stand-in for the command cogalign."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cogalign.cluster.profile import JOBS
from cogalign.cluster.submit import submit
from tests.slurm.stand_ins import (
    ROOT,
    SRUN,
    Site,
    data_is_finished,
    processes,
    wait_restart,
    with_vllm,
)

PROFILES = sorted((ROOT / "slurm").glob("*.yaml"))
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.mark.parametrize("source", [path.name for path in PROFILES])
def test_every_script_of_a_profile_runs_and_calls_its_command_once_a_rank(site: Site, source: str) -> None:
    if source == "gpu-vllm.yaml":
        with_vllm(site.recipe)
    if source == "gpu-multinode.yaml":
        site.recipe.sft.global_batch = 512
    if source == "pyxis.yaml":
        (site.folder / "bin" / "srun").write_text(SRUN)
        (site.folder / "bin" / "srun").chmod(0o755)
    path = site.profile(source)
    content = yaml.safe_load(path.read_text())
    sent = site.submit(path)
    assert list(sent.jobs) == [job for job in JOBS if job != "segmenter"]
    for number in sent.jobs.values():
        site.cluster.wait(number, seconds=300)

    nodes, tasks = content.get("nodes", 1), content.get("gpus_per_node") or content.get("tasks_per_node", 1)
    recipe = site.folder / "run" / "slurm" / "recipe.yaml"
    trainer = f"--trainer.devices {tasks} --trainer.num_nodes {nodes}"
    one = "--trainer.devices 1 --trainer.num_nodes 1"
    assert site.calls("sft") == [f"sft {recipe} {trainer}"] * (nodes * tasks)
    assert [re.sub(r" --grpo\.vllm\.url http://n\d:3\d{4}$", "", call) for call in site.calls("grpo")] == [
        f"grpo {recipe} {trainer}"
    ] * (nodes * tasks)
    assert site.calls("prepare") == [f"prepare {recipe} {one}"]
    shards = content.get("counterfactual", {}).get("shards", 8)
    assert site.calls("counterfactual") == sorted([
        f"counterfactual {recipe} {one}",
        f"counterfactual {recipe} --phase masks {one}",
        *(f"counterfactual {recipe} --phase make {one} --shard {index}/{shards}" for index in range(shards)),
    ])  # fmt: skip
    for stage in ("evaluate", "audit", "export"):
        assert site.calls(stage) == [f"{stage} {recipe} {one}"]

    ranks = [site.variables(f"sft.x.{rank}.*") for rank in range(nodes * tasks)]
    assert {found["MASTER_ADDR"] for found in ranks} == {"n1"}
    assert {found["MASTER_PORT"] for found in ranks} == {str(10000 + int(sent.jobs["sft"]) % 10000)}
    assert {found["SLURMD_NODENAME"] for found in ranks} == {"n1", "n2"} if nodes == 2 else {"n1"}
    assert all(found["OMP_NUM_THREADS"] == str(content["cpus_per_task"]) for found in ranks)
    assert all(found["HF_HUB_OFFLINE"] == "1" for found in ranks)
    assert all(found.items() >= {k: str(v) for k, v in content.get("nccl", {}).items()}.items() for found in ranks)
    if content.get("gpus_per_node"):
        assert ranks[0]["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, range(tasks)))
        assert site.variables("evaluate.*")["CUDA_VISIBLE_DEVICES"].count(",") == 0
    assert "CUDA_VISIBLE_DEVICES" not in site.variables("prepare.*")
    _containers_are_as_asked(site, source, content)
    done = sorted(path.name for path in (site.folder / "run" / "slurm").glob("*.finished"))
    plain = [f"{job}.finished" for job in sent.jobs if job != "counterfactual"]
    assert done == sorted([*plain, *(f"counterfactual_{index}.finished" for index in range(shards))])
    assert not list((site.folder / "run" / "slurm").glob("canary*"))


def _containers_are_as_asked(site: Site, source: str, content: dict[str, Any]) -> None:
    here, run = site.folder, site.folder / "run"
    if source == "apptainer.yaml":
        lines = (site.records / "apptainer").read_text().splitlines()
        bind = f"--bind {run}:{run} --bind {here}:{here} --pwd {here} cogalign.sif {content['command']}"
        assert sum(line.startswith(f"exec --nv {bind} sft") for line in lines) == 4
        assert any(line.startswith(f"exec {bind} prepare") for line in lines)  # no GPU, no --nv
    if source == "pyxis.yaml":
        lines = (site.records / "pyxis").read_text().splitlines()
        assert set(lines) == {"--container-image=cogalign.sqsh", f"--container-workdir={here}",
                              f"--container-mounts={run}:{run},{here}:{here}"}  # fmt: skip


def test_pyxis_without_its_plug_in_is_an_error_of_srun(site: Site) -> None:
    sent = site.submit(site.profile("pyxis.yaml"), "sft")
    site.cluster.wait(sent.jobs["data"], "FAILED")
    assert "unrecognized option '--container-image=cogalign.sqsh'" in site.log("data", sent.jobs["data"])
    site.cluster.wait(sent.jobs["sft"], "CANCELLED")  # not left waiting for ever


def test_a_failed_job_cancels_those_that_wait_for_it_and_leaves_no_marker(site: Site) -> None:
    sent = site.submit(site.profile(environment={"BEHAVIOUR": "fail"}), "sft", "counterfactual")
    site.cluster.wait(sent.jobs["data"], "FAILED")
    for job in ("sft", "counterfactual-masks", "counterfactual", "counterfactual-finish"):
        site.cluster.wait(sent.jobs[job], "CANCELLED")
    assert "data: ended with exit code 3" in site.log("data", sent.jobs["data"])
    assert not list((site.folder / "run" / "slurm").glob("*.finished"))


def test_the_command_gets_what_the_job_exports_whatever_the_site_says_of_exports(site: Site) -> None:
    data_is_finished(site)
    site.cluster.wait(site.submit(site.profile(sbatch=["--export=PATH,SLURM_CONF"]), "sft").jobs["sft"])
    found = site.variables("sft.x.1.*")
    assert found["COGALIGN_REQUEUE_FILE"].startswith(str(site.folder))
    assert found["MASTER_ADDR"] == "n1"


def test_nothing_outlives_a_job_whose_batch_shell_ends_early(site: Site) -> None:
    profile = site.profile(environment={"BEHAVIOUR": "listen"}, setup=["sleep 4321 &"])
    data_is_finished(site)
    number = site.submit(profile, "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    assert processes("sleep 4321")
    site.cluster.run("scancel", "--signal=USR1", number)
    wait_restart(site, number)
    assert not processes("sleep 4321")


def test_a_second_submission_is_refused_while_jobs_of_the_first_are_there(site: Site) -> None:
    profile = site.profile(environment={"BEHAVIOUR": "listen"})
    sent = site.submit(profile, "sft")
    site.until("prepare.*.ready")
    with pytest.raises(
        ValueError, match=rf"data {sent.jobs['data']} running, sft {sent.jobs['sft']} pending.*cogalign cancel"
    ):
        site.submit(profile, "sft")
    site.cluster.run("scancel", *sent.jobs.values())
    for number in sent.jobs.values():
        site.cluster.wait(number, "CANCELLED")
    again = site.submit(site.profile(), "sft")
    assert not set(again.jobs.values()) & set(sent.jobs.values())
    site.cluster.wait(again.jobs["sft"])


def test_a_job_that_slurm_refuses_cancels_those_before_it(site: Site) -> None:
    profile = site.profile(stages={"sft": {"partition": "nowhere"}}, environment={"BEHAVIOUR": "listen"})
    with pytest.raises(ValueError, match=r"sbatch refused the job sft \(.*sft\.sh\): .*invalid partition.*nowhere"):
        site.submit(profile, "sft")
    record = json.loads((site.folder / "run" / "slurm" / "jobs.json").read_text())
    assert list(record["jobs"]) == ["data"]
    site.cluster.wait(record["jobs"]["data"], "CANCELLED")


def test_odd_names_reach_the_command_unchanged(site: Site) -> None:
    odd = "a b'c\"d$HOME;#%j `x` *&"
    site.recipe.out = str(site.folder / odd)
    profile = site.profile(environment={"ODD": odd})
    number = submit(site.recipe, profile, ["sft"], dry_run=False).jobs["data"]
    site.cluster.wait(number)
    assert site.calls("prepare")[0].startswith(f"prepare {site.folder / odd}/slurm/recipe.yaml ")
    assert site.variables("prepare.*")["ODD"] == odd
    assert (site.folder / odd / "slurm" / "logs" / f"data-{number}.log").is_file()


def test_modules_setup_and_scratch_are_ready_before_the_command(site: Site) -> None:
    site.set_variable("BASH_FUNC_module%%", '() { [[ $2 != missing ]] && export "LOADED=${LOADED-}$2,"; }')
    site.set_variable("SITE_DISK", str(site.folder / "disk of the node"))
    profile = site.profile(
        modules=["gcc/13", "it's"], setup=["export FROM_SETUP=$LOADED$UNSET"], scratch="$SITE_DISK/tmp x"
    )
    data_is_finished(site)
    site.cluster.wait(number := site.submit(profile, "sft").jobs["sft"])
    for rank in range(2):
        found = site.variables(f"sft.x.{rank}.*")
        assert found["FROM_SETUP"] == "gcc/13,it's,"
        assert found["TMPDIR"] == f"{site.folder}/disk of the node/tmp x/cogalign-{number}"
    assert not Path(found["TMPDIR"]).exists()
    shutil.rmtree(site.records)
    site.records.mkdir()
    theirs = site.folder / "the user's TMPDIR"
    theirs.mkdir()
    site.set_variable("TMPDIR", str(theirs))
    number = site.submit(site.profile(modules=["missing"], scratch="$SITE_DISK"), "sft").jobs["sft"]
    site.cluster.wait(number, "FAILED")
    assert "the module missing could not be loaded" in site.log("sft", number)
    assert theirs.is_dir()  # only what the job made itself is deleted


def test_a_command_that_is_not_there_is_named(site: Site) -> None:
    profile = site.profile(command="cogalign-nowhere --flag")
    data_is_finished(site)
    number = site.submit(profile, "sft").jobs["sft"]
    site.cluster.wait(number, "FAILED")
    assert "there is no command cogalign-nowhere on n1" in site.log("sft", number)


@pytest.fixture
def half_blind(site: Site, tmp_path: Path) -> Iterator[Path]:
    """The session's cluster for a moment with a second node that does not see what the first writes into this folder."""
    hidden = tmp_path / "run"
    hidden.mkdir()
    state = site.cluster.state
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to give a node a file system of its own (unshare --mount)")
    words = ["slurmd", "-D", "-N", "n2", "-f", str(state / "etc" / "slurm.conf")]
    blind = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs none "$0" && mkdir -p "$0/slurm/logs" && exec "$@"',
        str(hidden),
    ]
    _restart_second_node(site, [*blind, *words])
    yield hidden
    _restart_second_node(site, words)


def _restart_second_node(site: Site, words: list[str]) -> None:
    pid_file = site.cluster.state / "run" / "slurmd-n2.pid"
    number = int(pid_file.read_text())
    os.kill(number, signal.SIGTERM)
    end = time.monotonic() + 60
    while Path(f"/proc/{number}/cmdline").exists() and Path(f"/proc/{number}/cmdline").read_bytes():
        assert time.monotonic() < end, "slurmd does not end"
        time.sleep(0.1)
    with open(site.cluster.state / "log" / "slurmd-n2.out", "ab") as log:
        started = subprocess.Popen(words, env=site.cluster.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)  # fmt: skip
    pid_file.write_text(f"{started.pid}\n")
    while "idle" not in site.cluster.run("sinfo", "-h", "-n", "n2", "-o", "%t").stdout.split():
        assert time.monotonic() < end, "the node does not come back"
        time.sleep(0.2)


def test_a_node_that_does_not_see_the_run_s_folder_is_named(site: Site, half_blind: Path) -> None:
    data_is_finished(site)
    number = site.submit(site.profile(canary_timeout=3), "sft").jobs["sft"]
    site.cluster.wait(number, "FAILED")
    log = site.log("sft", number)
    assert f"{half_blind}/slurm is not on a file system that all nodes share: n1 and n2 do not" in log
    assert "give --out a folder that all nodes see" in log
    assert not site.calls("sft")
