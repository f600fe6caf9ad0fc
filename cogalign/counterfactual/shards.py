"""A shard of the counterfactuals: its part of the plan, made by a job of its own, and a report of it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cogalign.counterfactual.work import make_open, prepare
from cogalign.training.atomic import write_json
from cogalign.training.context import StageContext
from cogalign.training.errors import message_of
from cogalign.training.interrupt import as_interruption
from cogalign.training.progress import format_seconds, say
from cogalign.training.ranks import together
from cogalign.training.stage_file import Status

FOLDER = "shards"


@dataclass
class ShardReport:
    """What `shards/<i>-of-<n>.json` holds.

    Attributes:
        shard: which, from 0.
        shards: how many there are.
        digest: of the stage that it belongs to.
        status: as that of a stage.
        made: counterfactuals of its tasks that are made.
        left_out: those that could not be made.
        seconds: over all tries.
        restarts: how often it was taken up again.
        message: why it failed.
    """

    shard: int
    shards: int
    digest: str
    status: Status = "running"
    made: int = 0
    left_out: int = 0
    seconds: float = 0.0
    restarts: int = 0
    message: str | None = None

    @property
    def name(self) -> str:
        """The stem of the shard's files."""
        return f"{self.shard}-of-{self.shards}"

    def write(self, folder: Path) -> None:
        """Write the report into the stage's folder as a whole file."""
        write_json(folder / FOLDER / f"{self.name}.json", asdict(self))


def read_report(folder: Path, shard: int, shards: int) -> ShardReport | None:
    """The report of a shard in a stage's folder; None if there is none, or none that can be read."""
    try:
        content = json.loads((folder / FOLDER / f"{shard}-of-{shards}.json").read_text(encoding="utf-8"))
        return ShardReport(**content)
    except (OSError, ValueError, TypeError):
        return None


def make_shard(context: StageContext, shard: tuple[int, int], digest: str) -> dict[str, Any]:
    """Make a shard's part of the plan: every n-th task, from the shard's own on. What is there is not made again.

    Progress goes to `shards/<i>-of-<n>/progress.json`, the report to `shards/<i>-of-<n>.json`.

    Args:
        context: recipe and folders.
        shard: which shard, from 0, and how many there are.
        digest: of the stage; empty in a process beside the main one, which writes no report.

    Returns:
        The report.

    Raises:
        FileNotFoundError: the masks were not found yet, or an image or mask is missing.
        ValueError, OSError: an image or mask is damaged, or the disk is full; what was made is kept.
        ChildProcessError: a worker process was killed.
        Interrupted: a signal came; what was made is kept.
    """
    start = time.monotonic()
    report = _begin(context.folder, shard, digest)
    earlier = report.seconds
    try:
        _make(context, shard, report)
        report.status = "finished"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or as_interruption(error) is not None:
            report.status = "interrupted"
            raise
        report.status, report.message = "failed", message_of(error)[:2000]
        raise
    finally:
        report.seconds = round(earlier + time.monotonic() - start, 3)
        if digest:
            _write(report, context.folder)
    say(f"counterfactual: shard {shard[0]} of {shard[1]}: {report.made} made, {report.left_out} left out, "
        f"in {format_seconds(report.seconds)}")  # fmt: skip
    return asdict(report)


def _begin(folder: Path, shard: tuple[int, int], digest: str) -> ShardReport:
    """The report as it stands when the shard begins, or goes on."""
    before = read_report(folder, *shard)
    report = ShardReport(*shard, digest)
    if before is not None and before.digest == digest:
        report.seconds = before.seconds
        report.restarts = before.restarts + (before.status != "finished")
    if digest:
        report.write(folder)
    return report


def _make(context: StageContext, shard: tuple[int, int], report: ShardReport) -> None:
    """Make the shard's open tasks and count what there is then."""
    if context.recipe.counterfactual.pairs is not None:
        say("counterfactual: the pairs were made before, there is nothing to make")
        return
    work = prepare(context, search=False)
    edits = [edit.id for task in work.plan.tasks[shard[0] :: shard[1]] for edit in task.edits]
    finished = work.parts.read()
    if any(edit not in finished for edit in edits):
        make_open(context, work, finished, shard, context.folder / FOLDER / report.name)
        together()
        finished = work.parts.read()
    report.made = sum(edit in finished.rows for edit in edits)
    report.left_out = sum(edit in finished.left_out for edit in edits)


def _write(report: ShardReport, folder: Path) -> None:
    """Write the report; on a full disk the shard's own error stays the one that is seen."""
    try:
        report.write(folder)
    except OSError as error:
        if report.status == "finished":
            raise
        say(f"warning: the report of shard {report.name} could not be written ({error})")
