"""Submit a run: write its job scripts into the run's folder, hand them to sbatch in order, keep the ids."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogalign.cluster import queue
from cogalign.cluster.jobs_file import JOBS_FILE, read_jobs
from cogalign.cluster.plan import Job, plan
from cogalign.cluster.profile import read_profile
from cogalign.cluster.render import render
from cogalign.recipe import Recipe
from cogalign.recipe_file import recipe_yaml
from cogalign.training.atomic import write_json, write_text
from cogalign.training.stage_file import now

FROM_A_JOB = ("SLURM_", "SBATCH_EXPORT", "COGALIGN_REQUEUE_FILE")
"""Beginnings of variables that a job around `cogalign submit` has set; its jobs must not take them for their own."""
OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")


@dataclass
class Submission:
    """What was submitted, or with a dry run what would be.

    Attributes:
        folder: `<run>/slurm`.
        scripts: name of a job → its script, in the order of submission.
        after: name of a job → the jobs that it waits for.
        jobs: name of a job → its id; empty with a dry run.
    """

    folder: Path
    scripts: dict[str, str] = field(default_factory=dict)
    after: dict[str, tuple[str, ...]] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)


def submit(recipe: Recipe, profile_path: Path, stages: Sequence[str] | None, dry_run: bool) -> Submission:
    """Submit the jobs of a run.

    Args:
        recipe: the resolved recipe.
        profile_path: the cluster profile.
        stages: the stages that are wanted; None for the recipe's.
        dry_run: only make the scripts; nothing is written or submitted.

    Raises:
        FileNotFoundError: there is no such profile, or no sbatch.
        ValueError: profile and recipe do not fit together; jobs of this run are still in the queue; SLURM refused a
            job (its message is quoted, and the jobs before it are cancelled).
    """
    profile = read_profile(profile_path)
    run_dir = recipe.run_dir.absolute()
    folder = run_dir / "slurm"
    recipe_path = folder / "recipe.yaml"
    jobs = plan(recipe, profile, stages, recipe_path)
    if not jobs:
        raise ValueError(f"{recipe.run_dir}: nothing to submit, the data are finished")
    made = Submission(folder, after={job.name: job.after for job in jobs})
    for job in jobs:
        made.scripts[job.name] = render(job, profile, profile_path, run_dir, recipe.name, recipe_path)
    if dry_run:
        return made
    if shutil.which("sbatch") is None:
        raise FileNotFoundError(
            "sbatch: not found; submit from a login node of a SLURM cluster, or look with --dry-run"
        )
    _require_idle(recipe.run_dir)
    _write(recipe, folder, jobs, made.scripts)
    _submit_all(jobs, made, profile.max_restarts)
    return made


def _require_idle(run_dir: Path) -> None:
    """Refuse a second submission while jobs of the first are queued or running.

    Raises:
        ValueError: names them, or says that SLURM does not answer.
    """
    submitted = read_jobs(run_dir)
    try:
        known = queue.tasks(list(submitted.values()))
    except queue.NoAnswer as error:
        raise ValueError(f"{run_dir}: it is not known whether jobs of this run are still there: {error}") from None
    found = [
        f"{name} {number} {states[0].lower()}"
        for name, number in submitted.items()
        if (states := [task.state for task in known.get(number, []) if task.active])
    ]
    if found:
        raise ValueError(
            f"{run_dir}: jobs of this run are still there ({', '.join(found)}); wait for them, or "
            f"`cogalign cancel {run_dir}` first"
        )


def _write(recipe: Recipe, folder: Path, jobs: Sequence[Job], scripts: Mapping[str, str]) -> None:
    """Write the resolved recipe and the scripts; take away an earlier submission's markers, keep its list of jobs aside."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    path = folder / JOBS_FILE.name
    if path.is_file():
        path.rename(path.with_name(f"jobs-{next(iter(read_jobs(folder.parent).values()), 'none')}.json"))
    for job in jobs:
        for pattern in (f"{job.name}.finished", f"{job.name}_*.finished", f"{job.name}.*.requeue"):
            for marker in folder.glob(pattern):
                marker.unlink(missing_ok=True)
    write_text(folder / "recipe.yaml", recipe_yaml(recipe))
    for name, text in scripts.items():
        write_text(folder / f"{name}.sh", text)


def _submit_all(jobs: Sequence[Job], made: Submission, max_restarts: int) -> None:
    """Hand the scripts to sbatch, each with the ids of those it waits for; all or none.

    Raises:
        ValueError: SLURM refused a job.
    """
    details: dict[str, Any] = {}
    try:
        for job in jobs:
            ids = [made.jobs[name] for name in job.after if name in made.jobs]
            made.jobs[job.name] = _sbatch(job, made.folder, ids)
            details[job.name] = {
                "after": list(job.after),
                "dependencies": ids,
                "script": str(made.folder / f"{job.name}.sh"),
                "log": str(made.folder / "logs" / f"{job.name}-{'%A_%a' if job.array else '%j'}.log"),
                "submitted": now(),
                "max_restarts": max_restarts,
                "array": job.array,
            }
            # after each: a submission that is killed can be cancelled
            write_json(made.folder / JOBS_FILE.name, {"jobs": made.jobs, "details": details})
    except BaseException:
        if made.jobs:
            _call("scancel", *made.jobs.values())
        raise


def _sbatch(job: Job, folder: Path, ids: Sequence[str]) -> str:
    """Submit one script and give back the job's id.

    Raises:
        ValueError: quotes SLURM's message.
    """
    waits = [f"--dependency=afterok:{':'.join(ids)}"] if ids else []
    done = _call("sbatch", "--parsable", *waits, str(folder / f"{job.name}.sh"))
    job_id = done.stdout.strip().split(";")[0]
    if done.returncode != 0 or not job_id.isdigit():
        raise ValueError(
            f"sbatch refused the job {job.name} ({folder / f'{job.name}.sh'}): {_said(done)}; "
            "the jobs submitted before it were cancelled"
        )
    return job_id


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    """A command of SLURM, without what a job around this process has set; sbatch may wait long, and must not be cut off."""
    kept = {
        name: value for name, value in os.environ.items() if name in OF_THE_CLUSTER or not name.startswith(FROM_A_JOB)
    }
    return queue.call(*words, environment=kept, timeout=None)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command of SLURM said, in one line."""
    return " ".join((done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").split())
