"""Every job script of every profile in `slurm/`, run on a real cluster with a stand-in for the command cogalign."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cogalign.cluster.profile import JOBS
from cogalign.cluster.submit import Submission, submit
from cogalign.recipe import LoraSettings, Recipe
from cogalign.recipe_file import read_recipe

ROOT = Path(__file__).resolve().parents[2]
PROFILES = sorted((ROOT / "slurm").glob("*.yaml"))
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

COMMAND = r"""#!/bin/bash
# A stand-in for cogalign: writes down how it was called, then does what $BEHAVIOUR says.
record=$RECORD/$1.${SLURM_ARRAY_TASK_ID:-x}.${SLURM_PROCID}.${SLURM_RESTART_COUNT:-0}.$SLURM_JOB_ID
printf '%s\n' "$*" >"$record.args.part" && mv "$record.args.part" "$record.args"
env -0 >"$record.env"
asked() {
  [[ $BEHAVIOUR != slow ]] || { trap "" USR1 TERM; sleep 4; : >"$record.saved"; }
  [[ $SLURM_PROCID != 0 ]] || echo "{\"signal\": \"SIG$1\"}" >"$COGALIGN_REQUEUE_FILE"
  exit 0
}
case $BEHAVIOUR in
  fail) exit 3 ;;
  deaf) [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || exec sleep 300 ;;
  busy) trap "" USR1; [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || sleep 300 ;;
  stone) [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || { trap "" USR1 TERM; exec sleep 300; } ;;
  listen | stubborn | slow | "one fails")
    [[ $BEHAVIOUR == stubborn || ${SLURM_RESTART_COUNT:-0} == 0 ]] || exit 0
    [[ ${SLURM_ARRAY_TASK_ID:-1} == 1 ]] || exit 0
    trap 'asked USR1' USR1
    trap 'asked TERM' TERM
    : >"$record.ready"
    [[ $BEHAVIOUR != "one fails" || $SLURM_PROCID != 1 ]] || { sleep 2; exit 3; }
    for _ in {1..1500}; do sleep 0.2; done ;;
esac
exit 0
"""
APPTAINER = r"""#!/bin/bash
# A stand-in for apptainer: writes down its options, runs the rest in the folder asked for.
echo "$*" >>"$RECORD/apptainer"
[[ $1 == exec ]] || exit 9
shift
while [[ $1 == --* ]]; do
  case $1 in
    --nv) shift ;;
    --bind) shift 2 ;;
    --pwd) cd "$2" || exit 9; shift 2 ;;
    *) exit 9 ;;
  esac
done
shift # the image
exec "$@"
"""
SRUN = r"""#!/bin/bash
# A stand-in for the plug-in pyxis: writes its options down and takes them away; all else is the real srun.
kept=()
for word in "$@"; do
  if [[ $word == --container-* ]]; then echo "$word" >>"$RECORD/pyxis"; else kept+=("$word"); fi
done
exec /usr/bin/srun "${kept[@]}"
"""
SERVER = r"""
import http.server, os, signal, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as the real one
kind = os.environ.get("SERVER", "")
print("server:", sys.argv, flush=True)
if kind == "dies at once":
    sys.exit("the server has no memory left")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_): pass
if kind == "never healthy":
    time.sleep(600)
server = http.server.HTTPServer(("0.0.0.0", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
if kind == "dies later":
    server.timeout = 1
    end = time.monotonic() + 6
    while time.monotonic() < end:
        server.handle_request()
    sys.exit("the server fell over")
server.serve_forever()
"""


@dataclass
class Site:
    """The cluster as one test uses it: a folder, stand-ins on the path, a run."""

    cluster: Any
    folder: Path
    recipe: Recipe
    set_variable: Callable[[str, str], None]

    @property
    def records(self) -> Path:
        return self.folder / "records"

    def profile(self, source: str = "mini.yaml", **changes: Any) -> Path:
        """A profile of `slurm/` with the stand-in as its command, and some keys changed."""
        content = yaml.safe_load((ROOT / "slurm" / source).read_text())
        content |= {"command": str(self.folder / "bin" / "cogalign")} | changes
        content["environment"] = (
            content.get("environment", {}) | {"RECORD": str(self.records)} | changes.get("environment", {})
        )
        if content.get("rollout_server"):
            content["rollout_server"] |= {"command": f"python {self.folder / 'bin' / 'server.py'}"}
        path = self.folder / f"profile-{source}"
        path.write_text(yaml.safe_dump(content))
        return path

    def submit(self, profile: Path, *stages: str) -> Submission:
        return submit(self.recipe, profile, list(stages) or None, dry_run=False)

    def log(self, job: str, number: str) -> str:
        return (self.folder / "run" / "slurm" / "logs" / f"{job}-{number}.log").read_text()

    def calls(self, job: str) -> list[str]:
        """How the stand-in was called by a command, one line a process."""
        return sorted(path.read_text().strip() for path in self.records.glob(f"{job}.*.args"))

    def variables(self, pattern: str) -> dict[str, str]:
        found = next(iter(sorted(self.records.glob(f"{pattern}.env"))))
        return dict(entry.split("=", 1) for entry in found.read_text().split("\0") if "=" in entry)

    def until(self, pattern: str, number: int = 1, seconds: float = 120) -> list[Path]:
        """Wait until so many files of this pattern are in the records."""
        end = time.monotonic() + seconds
        while len(found := list(self.records.glob(pattern))) < number:
            assert time.monotonic() < end, f"{pattern}: found {len(found)}, wanted {number}; {self.logs()}"
            time.sleep(0.2)
        return found

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in (self.folder / "run" / "slurm" / "logs").glob("*.log"))


@pytest.fixture
def site(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (tmp_path / "records").mkdir()
    for name, text in (("cogalign", COMMAND), ("apptainer", APPTAINER)):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    (bin_folder / "server.py").write_text(SERVER)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{bin_folder}:{cluster.env['PATH']}")
    monkeypatch.chdir(tmp_path)
    recipe = replace(read_recipe(ROOT / "recipes" / "quickstart.yaml"), out=str(tmp_path / "run"))
    recipe.sft.lora = LoraSettings()
    yield Site(cluster, tmp_path, recipe, monkeypatch.setenv)
    path = tmp_path / "run" / "slurm" / "jobs.json"
    if path.is_file():
        cluster.run("scancel", *json.loads(path.read_text())["jobs"].values(), check=False)


def with_vllm(recipe: Recipe) -> None:
    recipe.grpo.sampler = "vllm"


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


def test_a_signal_to_the_steps_requeues_the_job_and_the_restart_finishes(site: Site) -> None:
    sent = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}, stages={"data": {}}), "segmenter")
    _requeued_by(site, sent.jobs["data"], "prepare", 1, "--signal=USR1")
    number = sent.jobs["segmenter"]
    _requeued_by(site, number, "segmenter", 2, "--signal=USR1")
    assert site.log("segmenter", number).count("cogalign: segmenter: requeued") == 1
    assert "restart 1" in site.log("segmenter", number)  # appended, not written anew
    assert (site.folder / "run" / "slurm" / "segmenter.finished").read_text().strip() == number
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


def _requeued_by(site: Site, number: str, command: str, ranks: int, *how: str) -> None:
    site.until(f"{command}.x.*.0.{number}.ready", ranks)
    site.cluster.run("scancel", *how, number)
    _wait_restart(site, number)
    site.cluster.wait(number)
    assert site.cluster.job(number)["Restarts"] == "1"


def _wait_restart(site: Site, number: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while site.cluster.job(number)["Restarts"] == "0":
        assert time.monotonic() < end, site.logs()
        time.sleep(0.3)


@pytest.mark.parametrize(
    "how", [("--batch", "--signal=USR1"), ("--batch", "--signal=TERM"), ("--full", "--signal=USR1")]
)
def test_a_signal_to_the_batch_shell_reaches_all_ranks(site: Site, how: tuple[str, ...]) -> None:
    _data_is_finished(site)
    sent = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft")
    _requeued_by(site, sent.jobs["sft"], "sft", 2, *how)


def test_a_job_is_requeued_only_after_its_command_has_saved_however_often_it_is_told(site: Site) -> None:
    _data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "slow"}), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    for _ in range(3):
        site.cluster.run("scancel", "--batch", "--signal=TERM", number)
        time.sleep(1)
    _wait_restart(site, number)
    assert len(list(site.records.glob(f"sft.x.*.0.{number}.saved"))) == 2


def test_a_preempted_job_whose_commands_alone_get_term_is_requeued(site: Site) -> None:
    _data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft").jobs["sft"]
    _requeued_by(site, number, "sft", 2, "--signal=TERM")


def test_a_job_is_requeued_although_slurm_does_not_answer_at_first(site: Site) -> None:
    mute = site.folder / "bin" / "scontrol"
    mute.write_text(
        '#!/bin/bash\n[[ $1 == show && $2 == job && ! -e $RECORD/mute ]] || exec /usr/bin/scontrol "$@"\n: >"$RECORD/mute"\n'
        'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1\n'
    )
    mute.chmod(0o755)
    _data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    site.cluster.run("scancel", "--signal=USR1", number)
    _wait_restart(site, number)
    assert (site.records / "mute").exists()


def test_a_job_one_of_whose_ranks_fails_is_not_requeued(site: Site) -> None:
    """srun ends the other ranks by TERM, which they take for a stop."""
    _data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "one fails"}), "sft").jobs["sft"]
    site.cluster.wait(number, "FAILED")
    assert site.cluster.job(number)["Restarts"] == "0"
    assert "sft: ended with exit code 3" in site.log("sft", number)
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


def test_the_command_gets_what_the_job_exports_whatever_the_site_says_of_exports(site: Site) -> None:
    _data_is_finished(site)
    site.cluster.wait(site.submit(site.profile(sbatch=["--export=PATH,SLURM_CONF"]), "sft").jobs["sft"])
    found = site.variables("sft.x.1.*")
    assert found["COGALIGN_REQUEUE_FILE"].startswith(str(site.folder))
    assert found["MASTER_ADDR"] == "n1"


def _data_is_finished(site: Site) -> None:
    from cogalign.pipeline_digest import stage_digest
    from cogalign.training.stage_file import StageFile

    StageFile("data", stage_digest(site.recipe, "data"), status="finished").write(site.recipe.run_dir / "data")


def test_a_command_that_had_no_time_to_listen_is_requeued_too(site: Site) -> None:
    _data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "deaf"}), "sft").jobs["sft"]
    site.until("sft.x.*.args", 2)
    time.sleep(1)
    site.cluster.run("scancel", "--signal=USR1", number)
    _wait_restart(site, number)
    site.cluster.wait(number)


def test_a_job_that_was_cancelled_does_not_come_back(site: Site) -> None:
    _data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    site.cluster.run("scancel", number)
    site.cluster.wait(number, "CANCELLED")
    time.sleep(3)
    assert site.cluster.job(number)["JobState"] == "CANCELLED"
    assert "requeued" not in site.log("sft", number).replace("not requeued", "")
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


def test_a_job_is_not_requeued_more_often_than_the_profile_allows(site: Site) -> None:
    _data_is_finished(site)
    profile = site.profile(environment={"BEHAVIOUR": "stubborn"}, max_restarts=1)
    number = site.submit(profile, "sft").jobs["sft"]
    for restart in range(2):
        site.until(f"sft.x.*.{restart}.{number}.ready", 2)
        site.cluster.run("scancel", "--signal=USR1", number)
        if restart == 0:
            _wait_restart(site, number)
    site.cluster.wait(number, "FAILED")
    assert "restarted 1 times before (max_restarts)" in site.log("sft", number)


def test_an_administrator_s_requeue_beyond_the_cap_ends_the_job_at_its_start(site: Site) -> None:
    _data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}, max_restarts=0), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    site.cluster.run("scontrol", "requeue", number)
    _wait_restart(site, number)
    site.cluster.wait(number, "FAILED")
    assert "restarted 1 times, and max_restarts of the cluster profile is 0" in site.log("sft", number)
    assert not list(site.records.glob("sft.x.*.1.*"))


def test_a_finished_job_that_is_requeued_exits_at_once(site: Site) -> None:
    _data_is_finished(site)
    number = site.submit(site.profile(), "sft").jobs["sft"]
    site.cluster.wait(number)
    site.cluster.run("scontrol", "requeue", number)
    _wait_restart(site, number)
    site.cluster.wait(number)
    assert "finished before, nothing to do" in site.log("sft", number)
    assert len(site.calls("sft")) == 2  # both of the first time


def test_only_the_task_of_an_array_that_was_stopped_comes_back(site: Site) -> None:
    profile = site.profile(environment={"BEHAVIOUR": "listen"}, counterfactual={"shards": 2, "max_running": 1})
    _data_is_finished(site)
    sent = site.submit(profile, "counterfactual")
    _requeued_by(site, sent.jobs["counterfactual-masks"], "counterfactual", 1, "--signal=USR1")
    number = sent.jobs["counterfactual"]
    # with two tasks of which one runs at a time, the last one has the number of the array itself
    site.until("counterfactual.1.*.ready")
    site.cluster.run("scancel", "--signal=USR1", f"{number}_1")
    end = time.monotonic() + 60
    while (task := _task(site, number, "1"))["Restarts"] == "0":
        assert time.monotonic() < end, site.logs()
        time.sleep(0.3)
    assert task["JobId"] == number
    site.cluster.wait(number)
    assert _task(site, number, "0")["Restarts"] == "0"
    assert len(list(site.records.glob("counterfactual.0.*.args"))) == 1
    assert len(list(site.records.glob("counterfactual.1.*.args"))) == 2


def _task(site: Site, number: str, index: str) -> dict[str, str]:
    return next(task for task in site.cluster.tasks(number) if task["ArrayTaskId"] == index)


def test_nothing_outlives_a_job_whose_batch_shell_ends_early(site: Site) -> None:
    profile = site.profile(environment={"BEHAVIOUR": "listen"}, setup=["sleep 4321 &"])
    _data_is_finished(site)
    number = site.submit(profile, "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    assert _processes("sleep 4321")
    site.cluster.run("scancel", "--signal=USR1", number)
    _wait_restart(site, number)
    assert not _processes("sleep 4321")


def _processes(command: str) -> list[str]:
    found = subprocess.run(["pgrep", "-fx", command], capture_output=True, text=True, check=False)
    return found.stdout.split()


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
    _data_is_finished(site)
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
    _data_is_finished(site)
    number = site.submit(profile, "sft").jobs["sft"]
    site.cluster.wait(number, "FAILED")
    assert "there is no command cogalign-nowhere on n1" in site.log("sft", number)


def test_the_training_is_given_a_healthy_server_which_ends_with_the_job(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site)
    site.cluster.wait(number)
    port = 30000 + int(number) % 2000
    assert {call.split("--grpo.vllm.url ")[1] for call in site.calls("grpo")} == {f"http://n2:{port}"}
    assert f"--gpus 2 --argument=--max-model-len --argument=4096 --port {port}".split()[-1] in site.log(
        "grpo", f"{number}-server"
    )
    assert not _processes(f"python .*server.py .*--port {port}")


def _grpo(site: Site, server: str = "", behaviour: str = "", **changes: Any) -> str:
    from cogalign.training.stage_file import StageFile

    _data_is_finished(site)
    for stage in ("sft", "counterfactual"):
        StageFile(stage, "any", status="finished").write(site.folder / "run" / stage)
    settings = yaml.safe_load((ROOT / "slurm" / "gpu-vllm.yaml").read_text())["rollout_server"]
    settings |= {"arguments": ["--max-model-len", "4096"]} | changes
    profile = site.profile(
        "gpu-vllm.yaml", rollout_server=settings, environment={"SERVER": server, "BEHAVIOUR": behaviour}
    )
    return site.submit(profile, "grpo").jobs["grpo"]


@pytest.mark.parametrize(("server", "changes", "message"), [
    ("dies at once", {}, "the rollout server has ended before it was healthy"),
    ("never healthy", {"start_timeout": 3}, "the rollout server was not healthy after 3 s"),
])  # fmt: skip
def test_a_server_that_does_not_start_ends_the_job_with_the_end_of_its_log(
    site: Site, server: str, changes: dict[str, Any], message: str
) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, server, **changes)
    site.cluster.wait(number, "FAILED")
    assert message in site.log("grpo", number)
    assert "server: [" in site.log("grpo", number)
    assert ("no memory left" in site.log("grpo", number)) == (server == "dies at once")
    assert not site.calls("grpo")


def test_a_server_that_dies_later_stops_the_training_which_saves(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, "dies later", "listen")
    site.cluster.wait(number, "FAILED")
    log = site.log("grpo", number)
    assert "the rollout server has ended before the training" in log
    assert "the server fell over" in log
    assert site.cluster.job(number)["Restarts"] == "0"
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


def test_a_job_with_a_server_is_requeued_whole(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, behaviour="listen")
    _requeued_by(site, number, "grpo", 4, "--signal=USR1")
    assert site.log("grpo", number).count("the rollout server is healthy") == 2


def test_a_job_with_a_server_is_requeued_when_both_are_preempted_by_term(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, behaviour="listen")
    _requeued_by(site, number, "grpo", 4, "--signal=TERM")
    assert not list((site.folder / "run" / "slurm" / "logs").glob("*.healthy"))


def test_a_job_comes_back_before_its_time_limit_and_also_when_it_was_too_slow_for_that(site: Site) -> None:
    _data_is_finished(site)
    numbers = {}
    for behaviour in ("listen", "busy", "stone"):
        site.recipe.out = str(site.folder / behaviour)
        _data_is_finished(site)
        profile = site.profile(environment={"BEHAVIOUR": behaviour}, time="00:01:00", signal_before=40, nodes=1)
        numbers[behaviour] = site.submit(profile, "sft").jobs["sft"]
    logs = {}
    for behaviour, number in numbers.items():
        site.cluster.wait(number, seconds=240)
        assert site.cluster.job(number)["Restarts"] == "1"
        logs[behaviour] = (site.folder / behaviour / "slurm" / "logs" / f"sft-{number}.log").read_text()
    assert "TIME LIMIT" in logs["busy"]
    assert "the time limit is reached: requeued" in logs["stone"]
    assert "TIME LIMIT" not in logs["listen"]


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
    _data_is_finished(site)
    number = site.submit(site.profile(canary_timeout=3), "sft").jobs["sft"]
    site.cluster.wait(number, "FAILED")
    log = site.log("sft", number)
    assert f"{half_blind}/slurm is not on a file system that all nodes share: n1 and n2 do not" in log
    assert "give --out a folder that all nodes see" in log
    assert not site.calls("sft")
