"""Going through a study: each call takes the next run that nobody has and that can begin, until all are finished."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from cogalign.study.child import Log, run_child
from cogalign.study.claims import Claims
from cogalign.study.plan import Plan, Run
from cogalign.training.interrupt import Interrupted, check, signals_interrupt
from cogalign.training.progress import say
from cogalign.training.requeue import EXIT_INTERRUPTED, was_requested
from cogalign.training.stage_file import FILE_NAME, read_stage_file

LOOK_EVERY = 2.0
"""Seconds between two looks of a call that waits for what others do."""
EXIT_FAILED = 1


def run_study(plan: Plan, chosen: Collection[str] | None = None) -> int:
    """Do what is left of a study, beside other calls that do the same; write the results when all runs are there.

    Args:
        plan: the study.
        chosen: names of the runs that are wanted, with all that they need; None for all.

    Returns:
        Exit code: 1 if a run has failed, else 0.

    Raises:
        ValueError: another call works here with other settings.
        Interrupted: a signal came; the run under way has saved, and the next call goes on.
    """
    wanted = plan.with_needed({run.name for run in plan.runs} if chosen is None else set(chosen))
    _follow_references(plan)
    began = time.time()
    with signals_interrupt():
        claims = Claims(plan.out)
        with claims.working(plan.files()):
            worker = Worker(plan, claims)
            worker.do(wanted)
        if worker.failed:
            return _tell_failed(plan, worker, wanted)
        missing = unfinished(plan)
        if missing:
            say(
                f"study: {len(plan.runs) - len(missing)} of {len(plan.runs)} runs are finished; missing: {_names(missing)}"
            )
            return 0
        with claims.results():
            if _are_written(plan, began):
                say(f"study: another call has written {plan.out / 'study.html'}")
            else:
                write_results(plan.out)
    return 0


def write_results(out: Path, doubtful: Sequence[str] = ()) -> None:
    """Write the results from what is finished, see `results.write_results`."""
    from cogalign.study.results import write_results as write

    write(out, doubtful)


def results_of_finished(plan: Plan) -> None:
    """Write the results from what is finished; what was done with other settings or inputs is shown and named.

    Raises:
        FileNotFoundError: the study was not begun in this folder.
        ValueError: no run is finished.
        Interrupted: a signal came.
    """
    if not (plan.out / "study.yaml").is_file():
        raise FileNotFoundError(
            f"{plan.out}: no run of this study has begun here; start `cogalign study` without --results, or give --out"
        )
    missing = unfinished(plan)
    if missing:
        say(f"study: not finished with these settings: {_names(missing)}")
    with signals_interrupt(), Claims(plan.out).results():
        write_results(plan.out, [run.name for run in missing])


def _are_written(plan: Plan, began: float) -> bool:
    """Whether another call has written the results of all runs as they are now, since this one began."""
    path = plan.out / "study.json"
    try:
        written = path.stat().st_mtime
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    stages = [run.recipe.run_dir / stage / FILE_NAME for run in plan.runs for stage in run.recipe.stages]
    newest = max((file.stat().st_mtime for file in stages if file.exists()), default=0.0)
    return written > max(began, newest) and not found.get("missing", True) and not found.get("doubtful", True)


class Worker:
    """The part of one call in a study's work.

    Args:
        plan: the study.
        claims: who does what.
    """

    def __init__(self, plan: Plan, claims: Claims) -> None:
        self.plan, self.claims = plan, claims
        self.done: set[str] = set()
        self.failed: dict[str, Log] = {}
        self._told: set[str] = set()

    def do(self, runs: Sequence[Run]) -> None:
        """Go through the runs until each is finished, has failed, or needs one that has.

        Raises:
            Interrupted: a signal came.
        """
        left = list(runs)
        while left:
            check()
            held = self._take_one(left)
            left = [run for run in left if run.name not in self.done and run.name not in self.failed]
            if held is None:
                continue  # one was done: begin with the first again
            if not held:
                return  # all that is left needs one that has failed
            self._tell_wait(held)
            time.sleep(LOOK_EVERY)

    def _take_one(self, runs: Sequence[Run]) -> list[Run] | None:
        """Do the first run that can begin and that nobody has; None if there was one, else those that others do."""
        held = []
        for run in runs:
            if not self.done.issuperset(run.needs):
                continue
            claim = self.claims.take(run.name)
            if claim is None:
                held.append(run)
                continue
            try:
                if is_done(run):
                    self.done.add(run.name)
                    say(f"study: {run.label} is finished ({self._count()})")
                else:
                    log = Log(run.log, run.label)
                    self._do(run, log, run_child(self.plan.recipe_file(run), log, claim))
            finally:
                claim.release()
            return None
        return held

    def _do(self, run: Run, log: Log, code: int) -> None:
        """Note how a run's process has ended.

        Raises:
            Interrupted: a signal has stopped that process.
        """
        if is_done(run):
            self.done.add(run.name)
            say(f"study: {run.label} is finished ({self._count()})")
        elif code == EXIT_INTERRUPTED or was_requested():
            raise Interrupted(f"SIGTERM; {run.label} was stopped")
        else:
            self.failed[run.name] = log
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
            say(f"study: {run.label} has failed ({how}), log {run.log}")

    def _count(self) -> str:
        return f"{len(self.done)} of {len(self.plan.runs)}"

    def _tell_wait(self, held: Sequence[Run]) -> None:
        """Say once for what this call waits."""
        new = [run for run in held if run.name not in self._told]
        self._told |= {run.name for run in new}
        if new:
            say(f"study: waiting for {_names(new)}, under way in another process")


def is_done(run: Run) -> bool:
    """Whether all stages of a run have finished with these settings and inputs."""
    from cogalign.pipeline_digest import DATA, is_finished

    stages = (DATA, *run.recipe.stages)
    found = [read_stage_file(run.recipe.run_dir / stage) for stage in stages]
    if not all(one is not None and one.status == "finished" for one in found):
        return False  # without a look at the inputs, whose digests take time
    try:
        return all(is_finished(run.recipe, stage) for stage in stages)
    except FileNotFoundError:
        return False


def unfinished(plan: Plan) -> list[Run]:
    """The runs that are not finished with these settings."""
    return [run for run in plan.runs if not is_done(run)]


def _follow_references(plan: Plan) -> None:
    """Images that stay where they were imported from may be read by all runs, also by those that name a case set."""
    from cogalign.data.prepare import follow_references

    follow_references(plan.base.data)


def _tell_failed(plan: Plan, worker: Worker, wanted: Sequence[Run]) -> int:
    """Say what failed, where its log is and what it said last; returns the exit code."""
    for run in wanted:
        if run.name not in worker.failed:
            continue
        say(f"\nstudy: {run.label} has failed. Its log is {run.log}; the last lines:")
        for line in worker.failed[run.name].last_lines():
            say(f"    {line}")
    waiting = [run for run in wanted if run.name not in worker.failed and run.name not in worker.done]
    if waiting:
        say(f"study: not begun, since they need it: {_names(waiting)}")
    say(f"study: {len(worker.done)} of {len(plan.runs)} runs are finished and kept; the same command goes on")
    return EXIT_FAILED


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.label for run in runs)


def listing(plan: Plan, chosen: Collection[str] | None = None) -> str:
    """The runs in order, one a line: optimizer steps, with those before it, what it starts from and what it is trained on."""
    runs = plan.runs if chosen is None else plan.with_needed(set(chosen))
    rows = [("run", "steps", "in all", "starts from", "trained on", "folder")]
    for run in runs:
        after = plan.study.arms[run.arm].after if run.arm else None
        rows.append((run.label, str(run.steps or "-"), str(run.total or "-"), after or ("-" if run.arm is None else "model"),
                     _mix(plan, run), str(run.recipe.run_dir)))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _mix(plan: Plan, run: Run) -> str:
    """Shares of the cases and of each intervention, e.g. `factual 1, removal 1`."""
    if run.arm is None:
        return "-"
    mix = run.recipe.sft.mix if plan.study.arms[run.arm].trains == "sft" else run.recipe.grpo.mix
    return str(mix)


def runs_of(plan: Plan, arms: Collection[str], seeds: Collection[int]) -> set[str]:
    """Names of the trainings of some arms with some seeds."""
    return {run.name for run in plan.runs if run.arm in arms and run.seed in seeds}
