"""What SLURM says about jobs: `scontrol` while it knows them, `sacct` afterwards, nothing where neither is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

TIMEOUT = 30.0
"""Seconds until a command of SLURM counts as unanswered."""
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
ACTIVE = (*WAITING, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
FAILED = (
    "FAILED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "BOOT_FAIL",
    "DEADLINE",
    "CANCELLED",
    "PREEMPTED",
    "REVOKED",
)
_FIELD = re.compile(r"(\S+?)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)")
_SACCT = ("JobID", "State", "ExitCode", "ElapsedRaw", "NodeList")


class NoAnswer(OSError):
    """SLURM is not installed here, or does not answer; the text says which."""


@dataclass(frozen=True)
class Task:
    """A job, or one or more tasks of a job array that are in the same state.

    Attributes:
        job_id: number of the job (of the array as a whole).
        state: SLURM's word, e.g. RUNNING.
        reason: why it waits or how it ended, SLURM's word; empty if there is none.
        restarts: how often it was put back into the queue; None if that is not known any more.
        nodes: the nodes it has or had, as SLURM writes them; empty if none.
        seconds: how long it has run since its last start.
        log: file of its output; empty if not known.
        exit_code: SLURM's `code:signal`.
        index: number in the array; None for a job that is no array, and for tasks that wait together.
        count: how many tasks this stands for.
    """

    job_id: str
    state: str
    reason: str = ""
    restarts: int | None = None
    nodes: str = ""
    seconds: int = 0
    log: str = ""
    exit_code: str = ""
    index: int | None = None
    count: int = 1

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE

    @property
    def failed(self) -> bool:
        """Whether it ended without success."""
        return self.state in FAILED


def tasks(job_ids: Sequence[str]) -> dict[str, list[Task]]:
    """What SLURM knows about jobs.

    Returns:
        Job → its tasks (one for a job that is no array); a job that SLURM has forgotten has none.

    Raises:
        NoAnswer: SLURM is not installed here, or does not answer.
    """
    found = {job: _from_scontrol(job) for job in job_ids}
    forgotten = [job for job, known in found.items() if not known]
    if forgotten:
        remembered = list(_from_sacct(forgotten))
        for job in forgotten:
            found[job] = [task for task in remembered if task.job_id == job]
    return found


def cancel(job_id: str) -> None:
    """Cancel a job (all tasks of an array); one that has just ended is no error.

    Raises:
        NoAnswer: as `tasks`.
        ValueError: SLURM refuses, e.g. because the job is another user's.
    """
    done = call("scancel", job_id)
    told = done.stderr.strip()
    if done.returncode != 0 and "already" not in told and "Invalid job id" not in told:
        raise ValueError(f"scancel {job_id}: {told or f'ended with {done.returncode}'}")


def parse_jobs(text: str) -> list[Task]:
    """The jobs in the output of `scontrol show job -o`; of a heterogeneous job the first part, which holds the script."""
    found = []
    for line in text.splitlines():
        fields = dict(_FIELD.findall(line))
        if "JobState" in fields and fields.get("HetJobOffset", "0") == "0":
            found.append(_task_of(fields))
    return found


def _task_of(fields: dict[str, str]) -> Task:
    indices = fields.get("ArrayTaskId", "")
    single = indices.isdecimal()
    reason, restarts = fields.get("Reason", ""), fields.get("Restarts", "")
    waits = "ArrayJobId" in fields and not single
    return Task(
        job_id=fields.get("ArrayJobId", fields.get("JobId", "")),
        state=fields["JobState"],
        reason="" if reason == "None" else reason,
        restarts=int(restarts) if restarts.isdecimal() else None,
        nodes="" if fields.get("NodeList") == "(null)" else fields.get("NodeList", ""),
        seconds=seconds_of(fields.get("RunTime", "")),
        log="" if waits else fields.get("StdOut", ""),  # of a task that waits, SLURM makes up a number
        exit_code=fields.get("ExitCode", ""),
        index=int(indices) if single else None,
        count=count_of(indices) if waits else 1,
    )


def count_of(indices: str) -> int:
    """How many tasks SLURM means by e.g. `2-5%2` or `0,3-8:2`."""
    number = 0
    for part in indices.split("%")[0].split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        if first.isdecimal():
            number += len(range(int(first), int(last or first) + 1, int(step or 1)))
    return max(1, number)


def seconds_of(duration: str) -> int:
    """Seconds of SLURM's `days-hours:minutes:seconds`; 0 where it knows none."""
    days, _, rest = duration.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in parts) or (days and not days.isdecimal()):
        return 0
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return seconds + 86_400 * int(days or 0)


def _from_scontrol(job_id: str) -> list[Task]:
    done = call("scontrol", "show", "job", "-o", job_id)
    if done.returncode == 0:
        return parse_jobs(done.stdout)
    if "Invalid job id" in done.stderr:
        return []
    raise NoAnswer(f"SLURM does not answer ({' '.join(done.stderr.split())[-200:] or 'no message'})")


def _from_sacct(job_ids: Sequence[str]) -> Iterator[Task]:
    """What the accounting remembers; nothing where a site has none."""
    try:
        done = call("sacct", "-X", "-n", "-P", "-j", ",".join(job_ids), "--format", ",".join(_SACCT))
    except NoAnswer:
        return
    if done.returncode == 0:
        yield from parse_sacct(done.stdout)


def parse_sacct(text: str) -> list[Task]:
    """The jobs in the output of `sacct -X -n -P` with the fields that are asked for here."""
    found = []
    for line in text.splitlines():
        fields = dict(zip(_SACCT, line.split("|"), strict=False))
        job_id, _, index = fields["JobID"].partition("_")
        job_id, _, offset = job_id.partition("+")
        if len(fields) < len(_SACCT) or offset not in ("", "0"):
            continue
        state, _, by = fields["State"].partition(" ")  # `CANCELLED by 1000`
        nodes = "" if fields["NodeList"] == "None assigned" else fields["NodeList"]
        elapsed = fields["ElapsedRaw"]
        found.append(Task(job_id, state, by, None, nodes, int(elapsed) if elapsed.isdecimal() else 0, "",
                          fields["ExitCode"], int(index) if index.isdecimal() else None,
                          count_of(index.strip("[]")) if index else 1))  # fmt: skip
    return found


def call(
    *words: str, environment: Mapping[str, str] | None = None, timeout: float | None = TIMEOUT
) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM.

    Args:
        words: the command and its arguments.
        environment: its environment; None for this process's.
        timeout: seconds that it may take; None waits for ever.

    Raises:
        NoAnswer: it is not on this machine, or has not answered in time.
    """
    try:
        return subprocess.run(words, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout,
                              env=environment, check=False)  # fmt: skip
    except (FileNotFoundError, PermissionError):
        raise NoAnswer(f"{words[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"SLURM has not answered {words[0]} for {timeout:.0f} s") from None
