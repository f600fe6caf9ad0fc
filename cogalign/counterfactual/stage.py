"""Stage 2: from the factual case set to a case set of pairs."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from cogalign.counterfactual.gallery import write_gallery
from cogalign.counterfactual.module import CounterfactualModule, CounterfactualWriter
from cogalign.counterfactual.parts import Parts, digest, read_left_out
from cogalign.counterfactual.plan import Plan, make_plan
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.recipe import INTERVENTIONS, TrainerSettings
from cogalign.training.context import StageContext
from cogalign.training.progress import say
from cogalign.training.trainer import build_trainer

GALLERY = "gallery.html"


def run(context: StageContext) -> dict[str, Any]:
    """Make the counterfactuals of a run: a case set of pairs and `gallery.html` in the stage's folder.

    An interrupted stage goes on where it stopped: what the part files of the same plan hold is not made again.

    Returns:
        `counts` (by split, then by intervention), `n`, `source_cases`, `left_out` (by reason), `fill`, `seconds`,
        `per_second`.

    Raises:
        ValueError: a split is not there, no case can be used, or an image or mask is damaged.
        FileNotFoundError: the case set, an image or a mask is missing.
        OSError: the disk is full.
    """
    start = time.monotonic()
    settings = context.recipe.counterfactual
    case_set = read_case_set(context.case_set_dir)
    plan = make_plan(case_set, settings)
    parts = Parts(context.folder, digest(settings, case_set))
    finished = parts.read()
    before = len(finished.rows) + len(finished.left_out)
    if before:
        say(f"counterfactual: going on, {before} of {sum(len(task.edits) for task in plan.tasks)} were made before")
    module = CounterfactualModule(case_set, plan, finished, settings)
    trainer = build_trainer(
        context.recipe,
        folder=context.folder,
        callbacks=[CounterfactualWriter(parts, case_set, plan)],
        # Images are edited on the CPU; as many processes as the recipe has devices share the work.
        accelerator="cpu",
        devices=processes(context.recipe.trainer),
        precision="32-true",
        inference_mode=False,
    )
    trainer.predict(module, return_predictions=False)
    made = read_case_set(context.folder)
    if trainer.is_global_zero:
        write_gallery(made, case_set, context.folder / GALLERY, limit=settings.gallery)
    return metrics(made, plan, settings.fill, before, time.monotonic() - start, read_left_out(context.folder))


def processes(settings: TrainerSettings) -> int:
    """Processes on a machine: the recipe's number of devices; one where it leaves that open."""
    return int(settings.devices) if str(settings.devices).isdigit() else 1


def metrics(
    made: CaseSet, plan: Plan, fill: str, before: int, seconds: float, left_out: dict[str, int]
) -> dict[str, Any]:
    """What goes into `stage.json`; `before` counterfactuals were made by an earlier, interrupted run."""
    counts = {split: Counter(case.intervention for case in made.cases if case.split == split) for split in made.splits}
    return {
        "n": len(made.cases),
        "source_cases": len(plan.tasks),
        "counts": {split: {name: counts[split][name] for name in INTERVENTIONS} for split in sorted(counts)},
        "left_out": left_out,
        "fill": fill,
        "seconds": round(seconds, 2),
        "per_second": round(max(0, len(made.cases) - before) / max(seconds, 1e-9), 1),
    }
