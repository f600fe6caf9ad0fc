"""Job scripts: valid shell whatever the profile holds, and the options that a cluster needs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogalign.cluster.plan import plan
from cogalign.cluster.profile import Container, Profile, Resources, read_profile
from cogalign.cluster.render import render
from cogalign.recipe import LoraSettings, Recipe
from cogalign.recipe_file import read_recipe

ROOT = Path(__file__).resolve().parents[2]
LINE = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=30).filter(str.strip)


def a_recipe(name: str = "quickstart") -> Recipe:
    return read_recipe(ROOT / "recipes" / f"{name}.yaml")


def scripts(profile: Profile, recipe: Recipe | None = None, run: Path = Path("/shared/run")) -> dict[str, str]:
    recipe = recipe or a_recipe()
    made = plan(recipe, profile, None, run / "slurm" / "recipe.yaml")
    return {
        job.name: render(job, profile, Path("mine.yaml"), run, recipe.name, run / "slurm" / "recipe.yaml")
        for job in made
    }


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def shell(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *words], input=script, text=True, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["quickstart", "paper-2b"])
@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("*.yaml")), ids=lambda path: path.name)
def test_every_script_of_every_profile_is_valid_shell_and_names_no_site(path: Path, name: str) -> None:
    recipe, profile = a_recipe(name), read_profile(path)
    recipe.sft.lora = LoraSettings()
    if not profile.gpus_per_node:
        recipe.trainer.accelerator = "cpu"
    if profile.rollout_server:
        recipe.grpo.sampler = "vllm"
    found = scripts(profile, recipe)
    assert len(found) >= 8
    for job, script in found.items():
        checked = shell(script, "-n")
        assert (checked.returncode, checked.stderr) == (0, ""), job
        paths = set(re.findall(r"(?<![\w$}/:-])/\w[\w./-]*", script))
        ours = ("/shared/run", str(Path.cwd()), "/bin/bash", "/dev/", "/health")
        assert all(path.startswith(ours) for path in paths), paths


def test_a_script_asks_for_what_a_preemptible_job_needs() -> None:
    profile = Profile(nodes=2, gpus_per_node=4, partition="main", account="me", qos="high", reservation="r", memory="8G",
                      constraint="a100|h100", time="1-00:00:00", signal_before=90, sbatch=["--exclusive"])  # fmt: skip
    assert directives(scripts(profile)["sft"]) == [
        "--job-name=quickstart-sft",
        "--output=/shared/run/slurm/logs/sft-%j.log",
        "--open-mode=append",
        f"--chdir={Path.cwd()}",
        "--signal=USR1@90",
        "--kill-on-invalid-dep=yes",
        "--requeue",
        "--partition=main",
        "--account=me",
        "--qos=high",
        "--reservation=r",
        '--constraint="a100|h100"',
        "--time=1-00:00:00",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=1",
        "--mem=8G",
        "--gres=gpu:4",
        "--exclusive",
    ]


def test_an_array_has_its_limit_and_a_log_for_each_task() -> None:
    script = scripts(Profile())["counterfactual"]
    assert "--array=0-7%4" in directives(script)
    assert "--output=/shared/run/slurm/logs/counterfactual-%A_%a.log" in directives(script)
    assert '--shard "$SLURM_ARRAY_TASK_ID/8"' in script


@pytest.mark.parametrize(("flag", "kind", "wanted"), [
    ("gres", None, "--gres=gpu:4"), ("gres", "a100", "--gres=gpu:a100:4"),
    ("gpus-per-node", None, "--gpus-per-node=4"), ("gpus-per-node", "a100", "--gpus-per-node=a100:4"),
])  # fmt: skip
def test_gpus_are_asked_for_in_the_site_s_way(flag: str, kind: str | None, wanted: str) -> None:
    found = scripts(Profile(gpus_per_node=4, gpu_flag=flag, gpu_type=kind))  # type: ignore[arg-type]
    assert wanted in directives(found["sft"])
    assert not [line for line in directives(found["data"]) if "gpu" in line]


def test_a_percent_sign_in_the_run_s_path_is_no_pattern_of_the_log() -> None:
    script = scripts(Profile(), run=Path("/shared/100%j"))["sft"]
    assert "--output=/shared/100%%j/slurm/logs/sft-%j.log" in directives(script)


def test_paths_that_sbatch_or_a_mount_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="line ends or backslashes cannot be used in a job"):
        scripts(Profile(), run=Path("/shared/a\\b"))
    with pytest.raises(ValueError, match="line ends or backslashes"):
        scripts(Profile(), run=Path("/shared/a\nb"))
    scripts(Profile(), run=Path("/shared/a,b"))
    with pytest.raises(ValueError, match="colons or commas cannot be mounted into a container"):
        scripts(Profile(container=Container("apptainer", "x.sif")), run=Path("/shared/a,b"))


def test_network_settings_go_to_jobs_with_several_processes_only() -> None:
    found = scripts(Profile(nodes=2, nccl={"NCCL_DEBUG": "WARN"}, offline=False))
    assert "export NCCL_DEBUG=WARN" in found["sft"]
    assert "NCCL_DEBUG" not in found["evaluate"]
    assert "HF_HUB_OFFLINE" not in found["sft"]


def test_the_profile_s_environment_wins_over_ours() -> None:
    script = scripts(Profile(cpus_per_task=4, environment={"HF_HUB_OFFLINE": 0, "OMP_NUM_THREADS": 2}))["sft"]
    assert re.findall(r"export (OMP_NUM_THREADS|HF_HUB_OFFLINE)=(\S+)", script) == [
        ("OMP_NUM_THREADS", "4"), ("HF_HUB_OFFLINE", "0"), ("OMP_NUM_THREADS", "2")]  # fmt: skip


def test_only_jobs_on_several_nodes_look_whether_these_share_the_run_s_folder() -> None:
    found = scripts(Profile(nodes=2))
    assert {name for name, script in found.items() if "canary" in script} == {"sft", "grpo"}


def test_a_server_has_a_part_of_the_job_of_its_own() -> None:
    recipe, profile = a_recipe(), read_profile(ROOT / "slurm" / "gpu-vllm.yaml")
    recipe.sft.lora, recipe.grpo.sampler = LoraSettings(), "vllm"
    assert profile.rollout_server is not None
    profile = replace(profile, rollout_server=replace(profile.rollout_server, partition="big", port=8000, python="/v/python",
                                                      arguments=["--max-model-len", "4 096"]))  # fmt: skip
    found = scripts(profile, recipe)
    assert [name for name, script in found.items() if "hetjob" in script] == ["grpo"]
    first, second = found["grpo"].split("#SBATCH hetjob")
    assert "--gres=gpu:4" in directives(first)
    assert {"--gres=gpu:2", "--partition=big", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=16"} <= set(
        directives(second)
    )
    assert (
        "rollout_server /shared/run/slurm/recipe.yaml --gpus 2 --python /v/python --argument=--max-model-len '--argument=4 096'"
        in second
    )
    assert "port=8000" in second
    assert second.count("--het-group=0") == 1 and second.count("--het-group=1") == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    value=LINE,
    module=LINE,
    word=LINE,
    folder=LINE.map(lambda text: text.replace("/", "_").replace("\\", "_").replace("\0", "")),
)
def test_quoting_survives_odd_texts(value: str, module: str, word: str, folder: str) -> None:
    """The script's own lines, run by bash, give back every text as it was."""
    run = Path("/shared") / folder.strip(".")
    profile = Profile(environment={"ODD": value}, modules=[module], command=shlex.join(["cogalign", word]),
                      stages={"sft": Resources(constraint=value, account=module)})  # fmt: skip
    script = scripts(profile, run=run)["sft"]
    assert shell(script, "-n").returncode == 0
    kept = [
        line for line in script.splitlines() if line.startswith(("export ODD", "folder=", "command=(", "module load"))
    ]
    show = 'module() { printf "%s\\0" "$2"; }\nfail() { :; }\n'
    end = '\nprintf "%s\\0" "$ODD" "$folder" "${command[@]}"\n'
    printed = subprocess.run(["bash"], input=(show + "\n".join(kept) + end).encode(), capture_output=True, timeout=60,
                             check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}).stdout  # fmt: skip
    found = printed.decode().split("\0")
    assert found[:5] == [module, value, f"{run}/slurm", "cogalign", word]
    assert found[5:7] == ["sft", f"{run}/slurm/recipe.yaml"]


@settings(max_examples=25, deadline=None)
@given(rest=LINE.map(lambda text: text.replace("$", "_").replace("`", "_")))
def test_scratch_keeps_the_site_s_variable_and_quotes_the_rest(rest: str) -> None:
    script = scripts(Profile(scratch=f"$DISK/{rest}"))["sft"]
    line = next(line for line in script.splitlines() if line.startswith("TMPDIR="))
    printed = subprocess.run(["bash"], input=f'id=7\n{line}\nprintf "%s" "$TMPDIR"'.encode(), capture_output=True,
                             timeout=60, env={**os.environ, "DISK": "/my disk"}, check=True).stdout.decode()  # fmt: skip
    assert printed == f"/my disk/{rest.rstrip('/')}/cogalign-7"
    missing = subprocess.run(["bash"], input=f"id=7\n{line}", capture_output=True, text=True, timeout=60, check=False,
                             env={"PATH": os.environ["PATH"]})  # fmt: skip
    assert missing.returncode != 0
    assert "DISK: is not set on this node, but scratch of the cluster profile needs it" in missing.stderr
