"""How far a run is: its stages' own files, and what SLURM says about its jobs."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cogalign.cluster import queue
from cogalign.cluster.jobs_file import JOBS_FILE, read_jobs
from cogalign.cluster.queue import NoAnswer, Task
from cogalign.recipe import STAGES
from cogalign.training.progress_file import StageProgress, read_progress
from cogalign.training.stage_file import StageFile, read_stage_file

DATA = "data"
RECIPES = ("slurm/recipe.yaml", "recipe.yaml")
LOG_LINES = 12
"""Lines at the end of a failed job's log that are kept."""


@dataclass
class JobStatus:
    """A job of a stage in SLURM.

    Attributes:
        name: its name in the run.
        job_id: its number.
        states: state → how many tasks are in it; empty if SLURM has forgotten the job, or cannot be asked.
        reason: why it waits or how it ended, SLURM's word.
        restarts: how often its tasks were put back into the queue, added up; None if not known.
        nodes: where it runs or ran last.
        seconds: how long it has run since its last start; of an array the longest task.
        log: its newest log file (of a failed task, if one failed).
        log_end: the last lines of that file, if the job failed.
    """

    name: str
    job_id: str
    states: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    restarts: int | None = None
    nodes: str = ""
    seconds: int = 0
    log: str = ""
    log_end: list[str] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Whether some of it waits or runs."""
        return any(state in queue.ACTIVE for state in self.states)

    @property
    def failed(self) -> bool:
        """Whether some of it ended without success."""
        return any(state in queue.FAILED for state in self.states)


@dataclass
class StageStatus:
    """A stage of a run.

    Attributes:
        name: its name.
        state: as in `stage.json`: running, finished, failed, interrupted or partial; `ended` if it says running and nobody
            works on it any more; empty if the stage has not begun.
        progress: its `progress.json`; those of its shards added up if they are newer.
        seconds_left: until its last step, from now; None if it does not run or that cannot be said.
        seconds: its work over all tries, as of its last end.
        resumed: how often it was taken up again.
        message: why it failed.
        jobs: its jobs in SLURM, in order.
    """

    name: str
    state: str = ""
    progress: StageProgress | None = None
    seconds_left: float | None = None
    seconds: float = 0.0
    resumed: int = 0
    message: str = ""
    jobs: list[JobStatus] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it, or one of its jobs, failed, and nothing has made up for it or is about to."""
        if self.state == "finished":
            return False
        if any(job.active for job in self.jobs):
            return any(job.failed for job in self.jobs)
        return self.state in ("failed", "ended") or any(job.failed for job in self.jobs)


@dataclass
class RunStatus:
    """A run.

    Attributes:
        run: its folder.
        stages: in order.
        note: why SLURM could not be asked; empty if it answered or there was nothing to ask.
    """

    run: str
    stages: list[StageStatus]
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether a stage or a job has failed."""
        return any(stage.failed for stage in self.stages)


def status(run_dir: Path) -> RunStatus:
    """How far a run is, with or without SLURM.

    Args:
        run_dir: the run's folder.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no run.
        ValueError: `slurm/jobs.json` is damaged.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such folder, wanted that of a run (`out` of its recipe)")
    jobs, note = _jobs(run_dir)
    stages = [_stage(run_dir, name, [job for job in jobs if stage_of(job.name) == name], bool(note))
              for name in (DATA, *STAGES)]  # fmt: skip
    wanted = _wanted(run_dir)
    known = [stage for stage in stages if stage.state or stage.jobs or stage.name in wanted]
    if not known:
        raise FileNotFoundError(f"{run_dir}: found neither a recipe.yaml nor a stage, wanted the folder of a run")
    return RunStatus(str(run_dir), known, note)


def stage_of(job: str) -> str:
    """The stage that a job belongs to: `counterfactual` of `counterfactual-masks`."""
    return job.split("-")[0]


def as_json(found: RunStatus) -> str:
    """All that is known, as JSON."""
    content = {**asdict(found), "failed": found.failed}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _jobs(run_dir: Path) -> tuple[list[JobStatus], str]:
    """The run's jobs, and why SLURM could not be asked for them."""
    submitted = read_jobs(run_dir)
    note, known = "", {}
    if submitted:
        try:
            known = queue.tasks(list(submitted.values()))
        except NoAnswer as error:
            note = f"{error}: what follows is from the run's files"
    return [_job(run_dir, name, number, known.get(number, [])) for name, number in submitted.items()], note


def _job(run_dir: Path, name: str, job_id: str, tasks: Sequence[Task]) -> JobStatus:
    job = JobStatus(name, job_id)
    for task in tasks:
        job.states[task.state] = job.states.get(task.state, 0) + task.count
    if not tasks:
        # What SLURM has forgotten: a task that was successful has left its marker.
        if finished := _markers(run_dir, name, job_id):
            job.states["COMPLETED"] = finished
        return job
    first = min(tasks, key=_importance)
    counted = [task.restarts for task in tasks if task.restarts is not None]
    job.reason, job.nodes, job.restarts = first.reason, first.nodes, sum(counted) if counted else None
    job.seconds = max(task.seconds for task in tasks)
    job.log = first.log or next((task.log for task in tasks if task.log), "")
    if first.failed and job.log:
        job.log_end = last_lines(Path(job.log))
    return job


def _markers(run_dir: Path, name: str, job_id: str) -> int:
    """How many tasks of a job have said that they finished: `<job>.finished`, or `<job>_<task>.finished` of an array."""
    folder, found = run_dir / JOBS_FILE.parent, 0
    for path in (folder / f"{name}.finished", *folder.glob(f"{name}_*.finished")):
        if path.is_file():
            found += path.read_text(encoding="utf-8").strip().partition("_")[0] == job_id
    return found


def _importance(task: Task) -> int:
    """Failed tasks first, then those that run, then those that wait."""
    return 0 if task.failed else 1 if task.state == "RUNNING" else 2 if task.active else 3


def last_lines(log: Path, count: int = LOG_LINES) -> list[str]:
    """The last lines of a log that hold anything; none if it cannot be read."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 65_536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _stage(run_dir: Path, name: str, jobs: list[JobStatus], unsure: bool) -> StageStatus:
    record: StageFile | None = read_stage_file(run_dir / name)
    progress = _newest(read_progress(run_dir / name), _of_shards(run_dir / name))
    found = StageStatus(name, progress=progress, jobs=jobs)
    if record is not None:
        found.state, found.seconds, found.resumed = record.status, record.seconds, record.resumed
        found.message = (record.message or "") if record.status == "failed" else ""
        if record.status == "running" and _is_over(run_dir, name, jobs, unsure):
            found.state = "ended"
    if progress is not None and found.state == "running" and progress.seconds_left is not None:
        found.seconds_left = max(0.0, progress.seconds_left - _age(progress.time))
    return found


def _newest(*found: StageProgress | None) -> StageProgress | None:
    return max((one for one in found if one is not None), key=lambda one: one.time, default=None)


def _of_shards(folder: Path) -> StageProgress | None:
    """The progress of a stage's shards (`shards/<i>-of-<n>/`), those of the newest division added up.

    The time left is known as soon as all shards have begun: that of the slowest one.
    """
    found: dict[str, list[StageProgress]] = {}
    for path in folder.glob("shards/*-of-*"):
        one = read_progress(path)
        if one is not None:
            found.setdefault(path.name.rpartition("-")[2], []).append(one)
    if not found:
        return None
    count, parts = max(found.items(), key=lambda item: max(one.time for one in item[1]))
    step, left = sum(one.step for one in parts), [one.seconds_left or 0.0 for one in parts if one.step != one.total]
    whole = len(parts) >= int(count) if count.isdecimal() else False
    total = sum(one.total or 0 for one in parts) if whole else None
    rest = (total or 0) - step
    seconds = max(left) / rest if left and rest > 0 else None
    newest = max(parts, key=lambda one: one.time)
    return StageProgress(step, total, seconds, newest.time, newest.unit, sum(one.restarts for one in parts))


def _is_over(run_dir: Path, name: str, jobs: Sequence[JobStatus], unsure: bool) -> bool:
    """Whether nobody works on a stage: its jobs are over, or it never had one and its lock is free."""
    if jobs:
        return not unsure and not any(job.active for job in jobs)
    return not is_locked(run_dir / ".lock") and not is_locked(run_dir / ".locks" / name)


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock on a file for itself; nothing is made or changed."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no such file, or a file system without locks
    return False


def _age(time: str) -> float:
    """Seconds since a time (ISO 8601); 0 if it cannot be read."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _wanted(run_dir: Path) -> list[str]:
    """The stages of the run's recipe."""
    import yaml

    for name in RECIPES:
        try:
            content: Any = yaml.safe_load((run_dir / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(content, dict) and isinstance(content.get("stages"), list):
            return [str(stage) for stage in content["stages"]]
    return []
