"""What stage 2 works on: the cases, where their lesions are, what is made of them; and the making of what is open."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer

from cogalign.counterfactual.backgrounds import background_split, lesions_of_backgrounds
from cogalign.counterfactual.locate import locate, located_before
from cogalign.counterfactual.located import Located
from cogalign.counterfactual.module import CounterfactualModule, CounterfactualWriter
from cogalign.counterfactual.parts import Finished, Parts, digest
from cogalign.counterfactual.plan import Plan, make_plan, unsuitable
from cogalign.counterfactual.workers import told_of_killed
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.models.encoder import check_encoder
from cogalign.recipe import CounterfactualSettings
from cogalign.training.context import StageContext
from cogalign.training.progress import say
from cogalign.training.trainer import build_trainer, processes


@dataclass(frozen=True)
class Work:
    """What is made of which cases.

    Attributes:
        case_set: the factual cases.
        located: masks by case id, or why there is none.
        plan: all counterfactuals.
        parts: the part files of this plan.
    """

    case_set: CaseSet
    located: Mapping[str, Located]
    plan: Plan
    parts: Parts


def prepare(context: StageContext, search: bool = True) -> Work:
    """Find where the lesions are and plan what is made.

    Args:
        context: recipe and folders.
        search: look for masks that were not found before; else they must be there.

    Raises:
        ValueError: a split is not there, no case can be used, an image or mask is damaged, or the encoder cannot be
            loaded.
        FileNotFoundError: the case set, an image, a mask or the segmenter is missing, or (without `search`) masks.
        ChildProcessError: a worker process was killed.
    """
    settings = context.recipe.counterfactual
    case_set = read_case_set(context.case_set_dir)
    if settings.quality.enabled and search:
        check_encoder(settings.quality.encoder, settings.quality.side)  # now, not after hours of making
    cases = _candidates(case_set, settings)
    located = locate(context, case_set, cases) if search else located_before(context, case_set, cases)
    parts = Parts(context.folder, digest(settings, case_set, located))
    return Work(case_set, located, make_plan(case_set, settings, located), parts)


def _candidates(case_set: CaseSet, settings: CounterfactualSettings) -> list[Case]:
    """The cases of the wanted splits, and of those that lend backgrounds, that have focal lesions, wherever these are."""
    for split in settings.splits:
        background_split(case_set, settings, split)  # now, not after hours of looking for masks
    splits = [*settings.splits, *lesions_of_backgrounds(settings)]
    return [case for split in splits for case in case_set.split(split) if unsuitable(case) is None]


def make_open(
    context: StageContext,
    work: Work,
    finished: Finished,
    shard: tuple[int, int] | None = None,
    progress: Path | None = None,
) -> tuple[Trainer, float]:
    """Make what is still open, of all tasks or of one shard's.

    Args:
        context: recipe and folders.
        work: what is made.
        finished: what was made before.
        shard: which shard, and how many there are; None makes everything.
        progress: folder of `progress.json`; by default the stage's.

    Returns:
        The trainer, and the seconds that it took.

    Raises:
        ValueError, OSError: an image or mask is damaged, or the disk is full; what was made is kept.
        ChildProcessError: a worker process was killed.
    """
    start = time.monotonic()
    plan, parts = work.plan, work.parts
    if shard is not None:
        index, count = shard
        plan = Plan(work.plan.tasks[index::count], {})
        # A file of its own for each start: an earlier one may still be alive on a node that the cluster has lost.
        parts = parts.of_writer(f"{index}-of-{count}-{secrets.token_hex(4)}-")
    edits = [edit.id for task in plan.tasks for edit in task.edits]
    before = sum(edit in finished for edit in edits)
    if before:
        say(f"counterfactual: going on, {before} of {len(edits)} were made before")
    module = CounterfactualModule(
        work.case_set, plan, finished, context.recipe.counterfactual, work.located, context.folder
    )
    trainer = build_trainer(
        context.recipe,
        folder=context.folder,
        callbacks=[CounterfactualWriter(parts, plan, progress or context.folder)],
        # Images are edited on the CPU; as many processes as the recipe has devices share the work.
        accelerator="cpu",
        devices=processes(context.recipe.trainer),
        precision="32-true",
        inference_mode=False,
    )
    with told_of_killed("counterfactual", "what was made"):
        trainer.predict(module, return_predictions=False)
    return trainer, time.monotonic() - start
