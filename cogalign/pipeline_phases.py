"""The counterfactuals of a run, made by several jobs: one finds the masks, shards make the pictures, one finishes.

`masks` begins the stage and leaves it `partial`. Each shard of `make` makes its part of the plan, beside the others, and
touches neither `stage.json` nor another shard's files. The whole stage (`run_recipe`) then makes whatever is still
open, grades, and writes the case set.
"""

from __future__ import annotations

from typing import Any

from cogalign.pipeline import Command, End, command_in, make_data, make_segmenter, run_stage, summarize
from cogalign.pipeline_digest import DATA, SEGMENTER, inputs_of, is_finished, stage_digest
from cogalign.pipeline_ranks import take_part
from cogalign.recipe import Recipe
from cogalign.training.context import StageContext
from cogalign.training.progress import say
from cogalign.training.stage_file import read_stage_file

STAGE = "counterfactual"
MASKS_FOUND = End("partial", "masks are found")


def run_phase(recipe: Recipe, phase: str, shard: tuple[int, int] | None = None) -> dict[str, Any]:
    """Run one phase of the stage `counterfactual`.

    Args:
        recipe: the resolved recipe.
        phase: `masks`, or `make` for a shard.
        shard: which shard, from 0, and how many there are; with `make` only. Their number may change between calls.

    Returns:
        The content of `summary.json` after `masks`, the shard's report after `make`.

    Raises:
        ValueError: no such phase or shard, another command stands in the way, or the masks were found with other
            settings or inputs.
        FileNotFoundError: masks have not been found, or an input stage has not finished.
        Interrupted: a signal came; the next call goes on.
    """
    if phase == "masks":
        if shard is not None:
            raise ValueError("--shard: found with --phase masks, wanted with --phase make only")
        with command_in(recipe) as command:
            make_data(command)
            make_segmenter(command)
            run_stage(command, STAGE, _find_masks, end=MASKS_FOUND)
        return summarize(recipe)
    if phase != "make":
        raise ValueError(f"--phase: found {phase!r}, wanted masks or make")
    if shard is None or not 0 <= shard[0] < shard[1]:
        found = "none" if shard is None else f"{shard[0]}/{shard[1]}"
        raise ValueError(f"--shard: found {found}, wanted I/N with I from 0 to N - 1")
    with command_in(recipe) as command:
        return _make(command, shard)


def _make(command: Command, shard: tuple[int, int]) -> dict[str, Any]:
    """Make a shard's counterfactuals."""
    from cogalign.data.prepare import follow_references

    follow_references(command.recipe.data)
    name = f"{STAGE}-make-{shard[0]}-of-{shard[1]}"
    context = command.context(STAGE)
    if command.follower is not None:
        take_part(command.follower, name, lambda: _make_shard(context, shard, ""), record=False, inputs=STAGE)
        return {}
    assert command.leader is not None
    command.locks.write(name)
    for needed in (DATA, *([SEGMENTER] if SEGMENTER in inputs_of(command.recipe, STAGE) else [])):
        command.locks.read(needed, wait=True)
    command.locks.read(STAGE)  # others may make too; nobody may find masks, finish or start anew meanwhile
    digest = _check_begun(command.recipe)
    if is_finished(command.recipe, STAGE):
        say(f"{STAGE}: finished before, shard {shard[0]} of {shard[1]} skipped")
        command.leader.skips(name)
        return {}
    command.leader.runs(name, digest)
    return _make_shard(context, shard, digest)


def _check_begun(recipe: Recipe) -> str:
    """The stage's digest, if masks were found with the same settings and inputs.

    Raises:
        FileNotFoundError: nothing was begun.
        ValueError: it was begun with other settings or inputs.
    """
    digest = stage_digest(recipe, STAGE)
    record = read_stage_file(recipe.run_dir / STAGE)
    command = "run `cogalign counterfactual RECIPE --phase masks` first"
    if record is None:
        raise FileNotFoundError(f"{recipe.run_dir / STAGE}: nothing tells where the lesions are; {command}")
    if record.digest != digest:
        raise ValueError(
            f"{recipe.run_dir / STAGE}: its masks were found with other settings or inputs than this recipe's; {command}"
        )
    return digest


def _find_masks(context: StageContext) -> dict[str, Any]:
    """The phase `masks`, imported when it is called."""
    from cogalign.counterfactual.stage import find_masks

    return find_masks(context)


def _make_shard(context: StageContext, shard: tuple[int, int], digest: str) -> dict[str, Any]:
    """The phase `make`, imported when it is called."""
    from cogalign.counterfactual.shards import make_shard

    return make_shard(context, shard, digest)
