"""Take the jobs of a run out of the queue."""

from __future__ import annotations

from pathlib import Path

from cogalign.cluster import queue
from cogalign.cluster.jobs_file import read_jobs


def cancel(run_dir: Path) -> list[str]:
    """Cancel the jobs of a run that wait or run, the last one first, so that none starts because one before it ended.

    What the jobs have saved is kept: submitted again, the run goes on.

    Args:
        run_dir: the run's folder.

    Returns:
        `name (job number)` of the jobs that were cancelled, in the order of submission.

    Raises:
        FileNotFoundError: there is no such folder, or nothing was submitted there.
        NoAnswer: SLURM is not here, or does not answer.
        ValueError: `slurm/jobs.json` is damaged, or SLURM refuses.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such folder, wanted that of a run")
    submitted = read_jobs(run_dir)
    if not submitted:
        raise FileNotFoundError(f"{run_dir}: no job was submitted from here (there is no slurm/jobs.json)")
    known = queue.tasks(list(submitted.values()))
    active = {name: job for name, job in submitted.items() if any(task.active for task in known[job])}
    for job in reversed(active.values()):
        queue.cancel(job)
    return [f"{name} (job {job})" for name, job in active.items()]
