"""The state of a run as a table for people, with one line for each thing that is wrong and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import StringIO
from typing import NamedTuple

from cogalign.cluster.queue import FAILED, WAITING
from cogalign.cluster.status import JobStatus, RunStatus, StageStatus
from cogalign.training.progress import format_seconds

REASONS = {
    "Dependency": "waits for the jobs before it",
    "DependencyNeverSatisfied": "a job before it failed: it will never start; `cogalign cancel` removes it",
    "BeginTime": "was put back into the queue and starts soon",
    "Resources": "waits for free nodes",
    "Priority": "others are before it in the queue",
    "JobArrayTaskLimit": "as many tasks run as the cluster profile allows (counterfactual.max_running)",
    "JobHeldUser": "is held: `scontrol release` lets it go",
    "JobHeldAdmin": "is held by an administrator",
    "PartitionTimeLimit": "asks for more time than the partition gives: lower `time` in the cluster profile",
    "PartitionNodeLimit": "asks for more nodes than the partition gives: lower `nodes` in the cluster profile",
    "PartitionConfig": "asks for what the partition does not give: see `partition` in the cluster profile",
    "ReqNodeNotAvail": "the nodes it needs are not available now",
    "QOSMaxWallDurationPerJobLimit": "asks for more time than the QOS gives: lower `time` in the cluster profile",
    "InvalidAccount": "`account` of the cluster profile is not known",
    "InvalidQOS": "`qos` of the cluster profile is not known",
    "AssocGrpGRES": "your account has as many GPUs as it may have",
}
"""Why SLURM lets a job wait, in words; what is not here is shown as SLURM says it."""
HARMLESS = ("", "Dependency", "BeginTime", "Resources", "Priority", "JobArrayTaskLimit")
CAUSES = {
    "TIMEOUT": "ran into its time limit before it could save: raise `time` or `signal_before` in the cluster profile",
    "OUT_OF_MEMORY": "needed more memory than it had: raise `memory` in the cluster profile",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
    "PREEMPTED": "gave way to another job and was not put back into the queue",
    "CANCELLED": "was cancelled",
    "FAILED": "failed",
}
AGAIN = "submit again to go on: what is finished is skipped"


class Row(NamedTuple):
    """A line of the table."""

    name: str
    state: str
    job: str = ""
    restarts: str = ""
    done: str = ""
    left: str = ""
    time: str = ""
    node: str = ""


def show(found: RunStatus, width: int | None = None) -> str:
    """A table with a line a job (a stage where it has none), and below it what is wrong and what to do.

    Args:
        found: from `status`.
        width: columns of the table; None for those of the terminal, 120 where there is none.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("stage", "state", "job", "restarts", "done", "left", "time", "node"):
        right = title in ("restarts", "left", "time")
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "state")
    for stage in found.stages:
        for row in rows_of(stage):
            table.add_row(*map(Text, row))
    buffer = StringIO()
    columns = width or shutil.get_terminal_size((120, 24)).columns
    Console(file=buffer, width=columns, color_system=None).print(table)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
    notes = [found.note] if found.note else []
    return "\n".join([found.run, text, *notes, *problems(found)])


def rows_of(stage: StageStatus) -> Iterator[Row]:
    """The lines of a stage; how far it is stands in the line of the job that works on it, else in the last one."""
    done, left = _done(stage), format_seconds(stage.seconds_left) if stage.seconds_left is not None else ""
    if not stage.jobs:
        time = format_seconds(stage.seconds) if stage.seconds else ""
        yield Row(
            stage.name, stage.state or "not begun", restarts=str(stage.resumed or ""), done=done, left=left, time=time
        )
        return
    shown = next((job for job in stage.jobs if "RUNNING" in job.states), stage.jobs[-1])
    for job in stage.jobs:
        here = job is shown
        yield Row(
            job.name, job_state(job) or stage.state or "not known", job.job_id,
            "" if not job.restarts else str(job.restarts), done if here else "", left if here else "",
            format_seconds(job.seconds) if job.seconds else "", job.nodes,
        )  # fmt: skip


def _done(stage: StageStatus) -> str:
    if stage.progress is None:
        return ""
    total = "" if stage.progress.total is None else f"/{stage.progress.total}"
    return f"{stage.progress.step}{total} {stage.progress.unit}"


def job_state(job: JobStatus) -> str:
    """The state of a job in a word or two; of an array how many tasks are in which."""
    words = {state: state.lower().replace("_", " ") for state in job.states}
    if sum(job.states.values()) == 1:
        (state,) = job.states
        waits = state in WAITING and job.reason
        return f"{words[state]} ({job.reason})" if waits else words[state]
    return ", ".join(f"{count} {words[state]}" for state, count in sorted(job.states.items()))


def problems(found: RunStatus) -> list[str]:
    """What is wrong and what to do, the cause first; empty if all goes well."""
    lines: list[str] = []
    for stage in found.stages:
        for job in stage.jobs:
            lines += _of_job(stage, job)
        if stage.failed and not any(job.failed for job in stage.jobs):
            lines.append(_of_stage(stage, bool(stage.jobs)))
    return lines


def _of_job(stage: StageStatus, job: JobStatus) -> list[str]:
    if stage.state == "finished":
        return []
    if job.failed:
        worst = min((state for state in job.states if state in FAILED), key=list(CAUSES).index, default="FAILED")
        began = bool(job.nodes)
        if worst == "CANCELLED" and not began:
            return [f"{job.name} (job {job.job_id}) was cancelled before it began; {AGAIN}"]
        told = f": {stage.message}" if stage.message and worst == "FAILED" else ""
        lines = [f"{job.name} (job {job.job_id}) {CAUSES[worst]}{told}; {AGAIN}"]
        if job.log_end:
            lines += [f"the end of {job.log}:", *(f"  {line}" for line in job.log_end)]
        return lines
    if any(state in WAITING for state in job.states) and job.reason not in HARMLESS:
        return [f"{job.name} (job {job.job_id}) waits: {REASONS.get(job.reason, job.reason)}"]
    return []


def _of_stage(stage: StageStatus, in_slurm: bool) -> str:
    again = AGAIN if in_slurm else "run the same command again to go on"
    if stage.state == "ended":
        return f"{stage.name} was begun, and nobody works on it any more (killed?); {again}"
    return f"{stage.name} failed: {stage.message or 'no message'}; {again}"
