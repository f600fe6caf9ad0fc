"""The stages of a run, in order: skip what is finished, go on with what is not, run again what has changed.

What a stage depends on is in its digest (`pipeline_digest`). `stage.json` keeps it, so a changed setting is noticed, and
with it everything that comes after. `pipeline_locks` says who may write where, `pipeline_ranks` what processes beside
the main one do, `pipeline_phases` how the counterfactuals of a run are made by several jobs.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogalign import __version__
from cogalign.pipeline_digest import (
    AFTERWARDS,
    DATA,
    SEGMENTER,
    in_order,
    inputs_of,
    is_finished,
    made_before,
    seeds_of,
    stage_digest,
)
from cogalign.pipeline_locks import RunLocks, summary_lock
from cogalign.pipeline_ranks import Follower, Leader, take_part
from cogalign.recipe import STAGES, Recipe
from cogalign.recipe_file import recipe_yaml
from cogalign.training.atomic import write_json, write_text
from cogalign.training.context import StageContext
from cogalign.training.disk import require_writable
from cogalign.training.errors import message_of
from cogalign.training.interrupt import as_interruption, check, signals_interrupt
from cogalign.training.launched import is_main_process
from cogalign.training.progress import format_seconds, say
from cogalign.training.requeue import requeue_file
from cogalign.training.stage_file import StageFile, Status, now, read_stage_file, versions

MODULES = {
    "segmenter": "cogalign.segmenter.stage",
    "sft": "cogalign.sft.stage",
    "counterfactual": "cogalign.counterfactual.stage",
    "grpo": "cogalign.grpo.stage",
    "evaluate": "cogalign.evaluation.stage",
    "audit": "cogalign.evaluation.audit_stage",
    "export": "cogalign.export",
}
"""Module of each stage; it is imported when the stage runs."""
TOGETHER = ("segmenter", "sft", "counterfactual", "grpo")
"""Stages in which all processes of a run take part; the main process alone does the others."""

StageFunction = Callable[[StageContext], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """One command that writes into a run folder.

    Attributes:
        recipe: the resolved recipe.
        locks: what it holds there.
        leader: tells processes beside this one what is done; None in such a process.
        follower: hears it; None in the main process.
    """

    recipe: Recipe
    locks: RunLocks
    leader: Leader | None
    follower: Follower | None

    def context(self, stage: str) -> StageContext:
        """What a stage is told."""
        return StageContext(self.recipe, self.recipe.run_dir, stage)


@dataclass(frozen=True)
class End:
    """How a piece of work leaves its stage."""

    status: Status = "finished"
    message: str | None = None


FINISHED = End()


def run_recipe(recipe: Recipe, stages: Sequence[str] | None = None, force: bool = False) -> dict[str, Any]:
    """Run a recipe: the data first, then its stages.

    Args:
        recipe: the resolved recipe; everything is written into `recipe.run_dir`.
        stages: stages to run instead of the recipe's; other commands may run other stages there at the same time.
        force: run them again although they are finished (the data too if `stages` is not given).

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError, OSError: what is wrong with the input, in one message; finished stages are kept.
        Interrupted: a signal stopped the run; the next call goes on.
    """
    wanted = in_order(recipe, recipe.stages if stages is None else stages)
    with command_in(recipe, alone=stages is None) as command:
        make_data(command, force and not stages)
        if "counterfactual" in wanted and SEGMENTER not in wanted:
            make_segmenter(command)
        for stage in wanted:
            check_made_before(command, stage, wanted)
            run_stage(command, stage, _function_of(stage), force and (stages is None or stage in stages))
        if stages is None and is_main_process():
            shutil.rmtree(recipe.run_dir / "cache", ignore_errors=True)  # of pixels: the stages are done with it
    return summarize(recipe)


def run_fills(recipe: Recipe, names: str | None, limit: int) -> str:
    """Compare fills on a recipe's own images; the results go into `fills/` of its run folder.

    Args:
        recipe: the resolved recipe; its data are prepared if they are not there.
        names: fills, with commas between them; None for all that need no model.
        limit: at most so many cases with lesions.

    Returns:
        The table, and where the files are.

    Raises:
        ValueError: an unknown fill, or no case has an expert's mask.
        FileNotFoundError: the recipe names a segmenter that is not there.
    """
    from cogalign.counterfactual.fills.registry import fills_named

    chosen, out = fills_named(names, recipe.counterfactual.diffusion_model), recipe.run_dir / "fills"
    with command_in(recipe, save_recipe=False) as command:
        command.locks.write("fills")
        make_data(command, False)
        from cogalign.counterfactual.locate import segmenter_folder
        from cogalign.counterfactual.quality.compare import compare_fills

        context = command.context("counterfactual")
        compare_fills(context, chosen, limit, out, segmenter_folder(context))
    return f"{(out / 'fills.md').read_text(encoding='utf-8')}\n{out} holds the table, the plot and pictures"


@contextmanager
def command_in(recipe: Recipe, alone: bool = False, save_recipe: bool = True) -> Iterator[Command]:
    """Everything that a command needs to write into a run folder, for as long as the block runs.

    Args:
        recipe: the resolved recipe.
        alone: whether no other command may write there meanwhile.
        save_recipe: write `recipe.yaml`.

    Raises:
        ValueError: another command stands in the way.
        Interrupted: a signal came.
    """
    with signals_interrupt():
        if not is_main_process():
            yield Command(recipe, RunLocks(recipe.run_dir, alone, active=False), None, Follower(recipe))
            return
        require_writable(recipe.run_dir)
        with Leader(recipe) as leader, RunLocks(recipe.run_dir, alone) as locks:
            if save_recipe:
                write_text(recipe.run_dir / "recipe.yaml", _recipe_to_keep(recipe))
            yield Command(recipe, locks, leader, None)


def _recipe_to_keep(recipe: Recipe) -> str:
    """The recipe as YAML; in a job of `cogalign submit` the one that was submitted, without this job's own devices."""
    submitted = recipe.run_dir / "slurm" / "recipe.yaml"
    if requeue_file() is not None and submitted.is_file():
        return submitted.read_text(encoding="utf-8")
    return recipe_yaml(recipe)


def make_data(command: Command, force: bool = False) -> None:
    """Make the pseudo-stage `data`, unless it is finished; another command that makes it is waited for."""
    from cogalign.data.prepare import follow_references

    follow_references(command.recipe.data)
    _make_means(command, DATA, _prepare_data, force)


def make_segmenter(command: Command) -> None:
    """Train the segmenter if the counterfactuals need the run's own: like the data it is a means, nobody has to ask."""
    if SEGMENTER in inputs_of(command.recipe, "counterfactual"):
        _make_means(command, SEGMENTER, _function_of(SEGMENTER), False)


def check_made_before(command: Command, stage: str, wanted: Sequence[str]) -> None:
    """Let pairs and a checkpoint made before be checked, if a stage reads them and nobody asked for their own stages."""
    needed = [name.rstrip("?") for name in inputs_of(command.recipe, stage)]
    for name in made_before(command.recipe):
        if name in needed and name not in wanted:
            _make_means(command, name, _function_of(name), False)


def _make_means(command: Command, stage: str, function: StageFunction, force: bool) -> None:
    """Run a stage on which others depend unless it is finished, and keep others from making it anew from then on."""
    if command.leader is None:
        run_stage(command, stage, function, force)
        return
    done = False
    while True:
        command.locks.read(stage, wait=True)
        if not force and is_finished(command.recipe, stage):
            if not done:
                _skip(command, stage)
            return
        command.locks.write(stage, wait=True)
        run_stage(command, stage, function, force)
        done, force = True, False


def _prepare_data(context: StageContext) -> dict[str, Any]:
    """The pseudo-stage `data`: the case set of the run."""
    from cogalign.data.caseset import read_case_set
    from cogalign.data.prepare import prepare

    case_set = read_case_set(prepare(context.recipe.data, context.folder))
    return {"cases": {split: len(case_set.split(split)) for split in case_set.splits}}


def _function_of(stage: str) -> StageFunction:
    """The function of a stage, imported when it is called."""

    def function(context: StageContext) -> dict[str, Any]:
        metrics: dict[str, Any] = importlib.import_module(MODULES[stage]).run(context)
        return metrics

    return function


def run_stage(command: Command, stage: str, function: StageFunction, force: bool = False, end: End = FINISHED) -> None:
    """Skip, go on with, or run one stage, and keep its `stage.json` and the summary true.

    Args:
        command: the command.
        stage: name of the stage.
        function: does the work.
        force: run it although it is finished.
        end: how the work leaves the stage when it succeeds.

    Raises:
        ValueError: another command writes there.
        FileNotFoundError: an input stage has not finished.
    """
    check()
    context = command.context(stage)
    if command.follower is not None:
        take_part(command.follower, stage, (lambda: function(context)) if stage in TOGETHER else None)
        return
    assert command.leader is not None
    inputs = [name.rstrip("?") for name in inputs_of(command.recipe, stage)]
    command.locks.write(stage)
    for name in inputs:
        command.locks.read(name)
    if not force and is_finished(command.recipe, stage):
        _skip(command, stage)
    else:
        record = _begin(context, force)
        command.leader.runs(stage, record.digest, record)
        _execute(context, function, record, end)
    for name in (stage, *(name for name in inputs if name not in (DATA, SEGMENTER))):
        command.locks.release(name)


def _skip(command: Command, stage: str) -> None:
    """Say that a stage is done before."""
    say(f"{stage}: finished before, skipped")
    summarize(command.recipe)
    if command.leader is not None:
        command.leader.skips(stage)


def _begin(context: StageContext, force: bool) -> StageFile:
    """Make room for a stage or go on with it; its `stage.json` says `running` then."""
    stage, recipe = context.stage, context.recipe
    digest, work = stage_digest(recipe, stage), stage_digest(recipe, stage, work_only=True)
    before = read_stage_file(context.folder)
    same = before is not None and before.digest == digest
    again = stage in AFTERWARDS and before is not None and before.work == work and not same
    record = StageFile(
        stage=stage, digest=digest, work=work, started=now(), versions=versions(), seeds=seeds_of(recipe, stage)
    )
    if before is not None and not force and ((same and before.status != "finished") or again):
        say(f"{stage}: {_why_on(before, again)}, going on")
        # A stage that another command has prepared was not stopped.
        record.resumed = before.resumed + (before.status != "partial")
        record.started, record.seconds = before.started, before.seconds
    else:
        _move_aside(stage, context.folder, before, same)
        say(f"{stage}: starting")
    _write(record, context)
    return record


def _why_on(before: StageFile, again: bool) -> str:
    """Why there is something to go on from."""
    if again:
        return "with other settings, but its work is there"
    return before.message or "a part is done" if before.status == "partial" else f"not finished ({before.status})"


def _execute(context: StageContext, function: StageFunction, record: StageFile, end: End) -> None:
    """Call the stage and write how it ended."""
    start, earlier = time.monotonic(), record.seconds
    try:
        record.metrics = function(context) or {}
        record.status, record.message = end.status, end.message
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or as_interruption(error) is not None:
            record.status = "interrupted"
            raise
        record.status = "failed"
        record.message = message_of(error)[:2000]
        raise
    finally:
        record.seconds = round(earlier + time.monotonic() - start, 3)
        record.finished = now()
        _finish_tracking(failed=record.status not in ("finished", "partial"))
        _write(record, context)
    done = "finished" if end.message is None else end.message
    say(f"{context.stage}: {done} in {format_seconds(record.seconds)}")


def _finish_tracking(failed: bool) -> None:
    """End the stage's wandb run, if the stage used tracking at all."""
    if "cogalign.training.tracking" in sys.modules:
        from cogalign.training.tracking import finish_tracking

        finish_tracking(failed)


def _write(record: StageFile, context: StageContext) -> None:
    """Write `stage.json` and `summary.json`; on a full disk the stage's own error stays the one that is seen."""
    try:
        record.write(context.folder)
        summarize(context.recipe)
    except OSError as error:
        if record.status in ("finished", "running", "partial"):
            raise
        say(f"warning: {context.folder / 'stage.json'} could not be written ({error})")


def _move_aside(stage: str, folder: Path, before: StageFile | None, same: bool) -> None:
    """Make room for a stage that runs anew: what it had made is renamed to `<stage>.replaced`."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    aside = folder.with_name(f"{folder.name}.replaced")
    reason = "runs again" if same else "made with other settings or inputs"
    if before is None:
        reason = "no stage.json says what it was made with"
    if aside.exists():
        say(f"{stage}: the older {aside} is deleted")
        shutil.rmtree(aside)
    say(f"{stage}: {reason}; the folder that is there becomes {aside.name}")
    os.replace(folder, aside)


def summarize(recipe: Recipe) -> dict[str, Any]:
    """Write `summary.json` from the stages' `stage.json`, and give its content back."""
    if not is_main_process():
        return _summary(recipe)
    # Whoever writes last must have read what others wrote before: their stage.json come first, then this.
    with summary_lock(recipe.run_dir):
        summary = _summary(recipe)
        write_json(recipe.run_dir / "summary.json", summary)
    return summary


def _summary(recipe: Recipe) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    for stage in (DATA, *STAGES):
        found = read_stage_file(recipe.run_dir / stage)
        if found is not None:
            stages[stage] = {"status": found.status, "seconds": found.seconds, "metrics": found.metrics}
    return {"recipe": recipe.name, "version": __version__, "stages": stages}


def run_phase(recipe: Recipe, phase: str, shard: tuple[int, int] | None = None) -> dict[str, Any]:
    """A phase of the counterfactuals; see `pipeline_phases.run_phase`."""
    from cogalign.pipeline_phases import run_phase as run

    return run(recipe, phase, shard)
