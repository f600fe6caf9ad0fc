"""A real two-node SLURM cluster for the tests of this folder; skipped where SLURM is not installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogalign.recipe import LoraSettings
from cogalign.recipe_file import read_recipe
from tests.slurm import small_run, stand_ins

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MINI = HERE / "mini"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
FAILED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
OVER = ("COMPLETED", *FAILED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `-m "not slurm"` leaves them out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


class Cluster:
    """A running cluster.

    Attributes:
        state: its folder: logs, configuration, keys.
        env: environment in which its commands and `cogalign` can be called.
    """

    def __init__(self, state: Path, env: dict[str, str]) -> None:
        self.state = state
        self.env = env

    def run(
        self, *words: str | Path, check: bool = True, cwd: Path | None = None, seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's environment.

        Raises:
            AssertionError: it failed and `check` is True; the message holds what it printed.
        """
        done = subprocess.run([str(word) for word in words], env=self.env, cwd=cwd, text=True, capture_output=True,
                              timeout=seconds, check=False)  # fmt: skip
        if check and done.returncode != 0:
            command = " ".join(map(str, words))
            pytest.fail(f"`{command}` ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def submit(self, *words: str | Path, cwd: Path | None = None) -> str:
        """`sbatch` with these words (options, then a script): the job's id."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd).stdout.strip().split(";")[0]

    def tasks(self, job_id: str) -> list[dict[str, str]]:
        """What `scontrol show job` tells: one dict for a job, one a task for an array."""
        lines = self.run("scontrol", "show", "job", "-o", job_id).stdout.splitlines()
        return [dict(re.findall(r"(\S+?)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)", line)) for line in lines if "JobId=" in line]

    def job(self, job_id: str) -> dict[str, str]:
        """`tasks` of a job that is no array."""
        return self.tasks(job_id)[0]

    def wait(self, job_id: str, *states: str, seconds: float = 240) -> list[dict[str, str]]:
        """Wait until a job (all tasks of an array) is in one of the states; COMPLETED by default.

        Returns:
            The job's `tasks`. Finished jobs can be asked for too (for two hours).

        Raises:
            AssertionError: it ended in another state, or the time is over; the message holds the end of its log.
        """
        wanted = states or ("COMPLETED",)
        end = time.monotonic() + seconds
        while True:
            found = self.tasks(job_id)
            now = [task["JobState"] for task in found]
            if all(state in wanted for state in now):
                return found
            wrong = [state for state in now if state in OVER and state not in wanted]
            if wrong or time.monotonic() > end:
                why = "it ended otherwise" if wrong else f"after {seconds:.0f} s"
                pytest.fail(
                    f"job {job_id} is {', '.join(now)}, wanted {' or '.join(wanted)} ({why})\n{self.log(found)}"
                )
            time.sleep(0.3)

    def log(self, tasks: list[dict[str, str]], lines: int = 40) -> str:
        """The last lines of the jobs' logs, for the message of a failed test."""
        texts = []
        for task in tasks:
            path = Path(task.get("StdOut", ""))
            text = path.read_text(errors="replace").splitlines()[-lines:] if path.is_file() else ["(no log)"]
            head = f"--- {task['JobId']} {task['JobState']} reason={task.get('Reason')} {path}"
            texts.append("\n".join([head, *text]))
        return "\n".join(texts)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes of 64 cores, 8 fake GPUs and 1 TB each (all claimed, not real), stopped after the last test."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        pytest.skip(f"SLURM is not installed ({missing[0]} is missing): make setup-slurm")
    state = Path(tempfile.mkdtemp(prefix="cog-slurm-", dir="/tmp"))  # short: unix sockets lie in it
    hosts = ["--hosts"] if os.access("/etc/hosts", os.W_OK) else []
    up = _start(state, path, hosts)
    if up.returncode != 0:
        pytest.fail(f"the cluster did not start\n{up.stdout}\n{up.stderr}")
    try:
        yield Cluster(state, _environment(state, path, tmp_path_factory.mktemp("wandb")))
    finally:
        down = subprocess.run([MINI / "down.sh", state], text=True, capture_output=True, timeout=120, check=False)
        if down.returncode != 0:
            pytest.fail(f"the cluster did not stop\n{down.stdout}\n{down.stderr}")
        if not request.session.testsfailed:
            shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(scope="session")
def whole_run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe, submitted and run to its end by a chain of jobs that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    for job in small_run.submit(cluster, folder, folder / "run").values():
        cluster.wait(job, seconds=small_run.SECONDS)
    return folder / "run"


def _start(state: Path, path: str, hosts: list[str]) -> Any:
    """Start the daemons; other ports are tried when some other test run was faster to take them."""
    done: Any = None
    for attempt in range(3):
        settings = {"PORT": _free_ports(attempt), "CPUS": 64, "GPUS": 8, "MEMORY": 1_000_000, "REQUEUE_DELAY": 5}
        env = {**os.environ, "PATH": path, **{f"SLURM_MINI_{name}": str(value) for name, value in settings.items()}}
        done = subprocess.run([MINI / "up.sh", state, *hosts], env=env, text=True, capture_output=True,
                              timeout=180, check=False)  # fmt: skip
        if done.returncode == 0 or "in use" not in "".join(map(Path.read_text, state.glob("log/*"))):
            break
        shutil.rmtree(state / "log", ignore_errors=True)
    return done


def _free_ports(attempt: int) -> int:
    """The first of three free ports; each pytest process looks at ports of its own first."""
    for number in range(1000):
        first = 20_000 + (os.getpid() * 10 + attempt * 3331 + number * 10) % 10_000
        try:
            for port in range(first, first + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no three free ports in a row between 20000 and 30000")


def _environment(state: Path, path: str, wandb: Path) -> dict[str, str]:
    """The environment of the jobs: this one without what a job or torchrun around the tests has set."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SBATCH_", "PYTEST_", "COGALIGN_REQUEUE"))
        and name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    return {
        **kept,
        "SLURM_CONF": str(state / "etc" / "slurm.conf"),
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DATA_DIR": str(wandb / "data"),
        "WANDB_CACHE_DIR": str(wandb / "cache"),
    }


@pytest.fixture
def site(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_ins.Site]:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (tmp_path / "records").mkdir()
    for name, text in (("cogalign", stand_ins.COMMAND), ("apptainer", stand_ins.APPTAINER)):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    (bin_folder / "server.py").write_text(stand_ins.SERVER)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{bin_folder}:{cluster.env['PATH']}")
    monkeypatch.chdir(tmp_path)
    recipe = replace(read_recipe(ROOT / "recipes" / "quickstart.yaml"), out=str(tmp_path / "run"))
    recipe.sft.lora = LoraSettings()
    yield stand_ins.Site(cluster, tmp_path, recipe, monkeypatch.setenv)
    path = tmp_path / "run" / "slurm" / "jobs.json"
    if path.is_file():
        cluster.run("scancel", *json.loads(path.read_text())["jobs"].values(), check=False)
