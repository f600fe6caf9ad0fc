"""What a requeue costs on the two-node test cluster: `python tests/benchmarks/requeue_time.py [--json FILE]`.

Submits the SFT of a small recipe by `cogalign submit` to `tests/slurm/mini`, as root or not, and

- sends it SIGUSR1: seconds until the step is done and saved, until SLURM runs the job again, until training starts in
  it (imports, model, checkpoint), and until its first step is logged; steps that were logged and not saved (goal: 0);
- kills all its processes with SIGKILL and submits it again: steps lost (goal: at most the checkpoint interval).

SLURM's part is the test cluster's own delay (`SLURM_MINI_REQUEUE_DELAY`), on a real one it is that of its queue.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from peer.machine import machine, versions
from peer.pair import write_json

from cogalign.cluster.jobs_file import read_jobs
from cogalign.training.metrics_file import METRICS_FILE, read_rows
from cogalign.training.progress_file import FILE_NAME, read_progress

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PARTS = ("finish_and_save", "slurm", "start_up", "first_step")
LIMIT = 180.0
"""Seconds after which one wait is given up."""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Ask until something is true, and give it back.

    Raises:
        TimeoutError: it was not in time.
    """
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"after {LIMIT:.0f} s: no {what}")


class Job:
    """The SFT job of a run on the test cluster."""

    def __init__(self, cluster: Any, recipe: Path, run: Path) -> None:
        self.cluster, self.recipe, self.run = cluster, recipe, run
        self.folder = run / "sft"
        self.number = ""

    def submit(self) -> None:
        """Send the job to the queue."""
        profile = ROOT / "slurm" / "mini.yaml"
        self.cluster.run(
            "cogalign", "submit", self.recipe, "--cluster", profile, "--out", self.run, "--stages", "[sft]"
        )
        self.number = read_jobs(self.run)["sft"]

    def runs(self) -> bool:
        """Whether SLURM has it running."""
        return bool(self.cluster.job(self.number)["JobState"] == "RUNNING")

    def is_over(self) -> bool:
        """Whether it is in its queue no more."""
        return self.cluster.job(self.number)["JobState"] not in ("RUNNING", "COMPLETING", "PENDING", "CONFIGURING")

    def restarts(self) -> int:
        """How often SLURM has requeued it."""
        return int(self.cluster.job(self.number)["Restarts"])

    def step(self) -> int:
        """The last step that was logged; 0 if there is none."""
        _, rows = read_rows(self.folder / METRICS_FILE)
        return int(rows[-1]["step"]) if rows else 0

    def saved(self) -> int:
        """The newest step of which there is a whole checkpoint; 0 if there is none."""
        names = [path.stem for path in (self.folder / "checkpoints").glob("step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def starts_with(self) -> int | None:
        """The step from which a life goes on that has done no step yet; None else."""
        found = read_progress(self.folder)
        return found.step if found is not None and found.seconds_per_step is None else None


def after_usr1(job: Job, step: int) -> dict[str, Any]:
    """Stop the job once it has done `step` steps; the parts of the time until it has done another."""
    wait_for(lambda: job.step() >= step, f"step {step}")
    restarts, before = job.restarts(), (job.folder / FILE_NAME).stat().st_mtime
    signalled = time.time()
    job.cluster.run("scancel", "--signal=USR1", job.number)
    wait_for(lambda: not job.runs(), "end of the job")
    saved, logged = job.saved(), job.step()
    (path,) = (job.folder / "checkpoints").glob(f"step-*{saved}.ckpt")
    written = path.stat().st_mtime
    wait_for(lambda: job.restarts() > restarts and job.runs(), "restart of the job")
    running = time.time()
    wait_for(lambda: job.starts_with() == saved and (job.folder / FILE_NAME).stat().st_mtime > max(before, running),
             "start of the training")  # fmt: skip
    started = (job.folder / FILE_NAME).stat().st_mtime
    wait_for(lambda: job.step() > saved, "first step")
    first = (job.folder / METRICS_FILE).stat().st_mtime
    times = (signalled, written, running, started, first)
    parts = {name: later - earlier for name, earlier, later in zip(PARTS, times, times[1:], strict=False)}
    return {**parts, "total": first - signalled, "steps_lost": max(0, logged - saved)}


def after_kill(job: Job, step: int) -> dict[str, Any]:
    """Kill the job's processes once it has done `step` steps and submit it again; what was lost, and the time."""
    wait_for(lambda: job.step() >= step, f"step {step}")
    job.cluster.run("scancel", "--full", "--signal=KILL", job.number)
    killed = time.time()
    wait_for(job.is_over, "end of the job")
    saved, logged = job.saved(), job.step()
    before = (job.folder / METRICS_FILE).stat().st_mtime
    job.submit()
    wait_for(lambda: (job.folder / METRICS_FILE).stat().st_mtime > before and job.step() > saved, "first step")
    return {"total": time.time() - killed, "steps_lost": logged - saved}


def measure(cluster: Any, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both cases, `repeats` times one after the other in one run."""
    from tests.slurm.small_run import RECIPE

    sft = {**RECIPE["sft"], "steps": 100_000, "checkpoint_every": options.every, "validate_every": 0}
    recipe = folder / "small.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "sft": sft}, sort_keys=False))
    job = Job(cluster, recipe, folder / "run")
    cluster.run("cogalign", "prepare", recipe, "--out", job.run)
    job.submit()
    found: dict[str, Any] = {"usr1": [], "kill": []}
    try:
        for _ in range(options.repeats):
            found["usr1"].append(after_usr1(job, job.step() + options.every + 1))
            print(f"USR1: {found['usr1'][-1]}", file=sys.stderr, flush=True)
        for _ in range(options.repeats):
            found["kill"].append(after_kill(job, job.step() + options.every + 2))
            print(f"KILL: {found['kill'][-1]}", file=sys.stderr, flush=True)
    except BaseException:
        print(cluster.log(cluster.tasks(job.number)), file=sys.stderr, flush=True)
        raise
    finally:
        cluster.run("scancel", job.number, check=False)
    return found


def table(result: dict[str, Any]) -> str:
    """Medians of both cases, in Markdown."""
    usr1, kill = result["usr1"], result["kill"]
    lines = ["| after USR1 | median, s |", "| --- | --- |"]
    for name in (*PARTS, "total"):
        lines.append(f"| {name.replace('_', ' ')} | {statistics.median(row[name] for row in usr1):.1f} |")
    lost = max(row["steps_lost"] for row in usr1), max(row["steps_lost"] for row in kill)
    lines.append(f"\nSteps lost: {lost[0]} after USR1, at most {lost[1]} after kill -9 "
                 f"(a checkpoint every {result['settings']['every']} steps)")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="times that each case is measured")
    parser.add_argument("--every", type=int, default=5, help="steps between two checkpoints")
    parser.add_argument("--json", type=Path, help="file of the result; it is printed without")
    options = parser.parse_args()
    from tests.slurm.conftest import MINI, Cluster, _environment, _start

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
    if shutil.which("slurmctld", path=path) is None:
        parser.error("SLURM is not installed: make setup-slurm")
    with tempfile.TemporaryDirectory(prefix="cog-", dir="/tmp") as name:
        folder = Path(name)
        up = _start(folder / "slurm", path, ["--hosts"] if os.access("/etc/hosts", os.W_OK) else [])
        if up.returncode:
            raise RuntimeError(f"the cluster did not start\n{up.stdout}\n{up.stderr}")
        try:
            cluster = Cluster(folder / "slurm", _environment(folder / "slurm", path, folder / "wandb"))
            found = measure(cluster, options, folder)
        finally:
            subprocess.run([MINI / "down.sh", folder / "slurm"], capture_output=True, timeout=120, check=False)
    settings = {"repeats": options.repeats, "every": options.every}
    result = {"benchmark": "requeue_time", "settings": settings, **found, "versions": versions(), "machine": machine(1)}
    write_json(result, options.json)
    print(table(result))


if __name__ == "__main__":
    main()
