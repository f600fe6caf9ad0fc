"""Stage 2: from the factual case set to a case set of pairs: find masks, make counterfactuals, grade them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cogalign.counterfactual.backgrounds import TAUGHT
from cogalign.counterfactual.gallery import write_gallery
from cogalign.counterfactual.locate import segmenter_folder
from cogalign.counterfactual.located import EXPERT
from cogalign.counterfactual.parts import read_left_out
from cogalign.counterfactual.plan import Plan
from cogalign.counterfactual.quality.stage import grade
from cogalign.counterfactual.work import make_open, prepare
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.splits import LEFT_OUT
from cogalign.recipe import INTERVENTIONS
from cogalign.training.context import StageContext
from cogalign.training.ranks import together

GALLERY = "gallery.html"


def run(context: StageContext) -> dict[str, Any]:
    """Make the counterfactuals of a run: a case set of pairs, its quality and `gallery.html` in the stage's folder.

    An interrupted stage goes on where it stopped: what the part files of the same plan hold is not made again.

    Returns:
        `counts` (by split, then by intervention), `n`, `source_cases`, `left_out` (by reason), `rejected` (by reason),
        `yield` (by intervention), `masks` (by provenance), `quality`, `fill`, `seconds`, `per_second`.

    Raises:
        ValueError: a split is not there, no case can be used, an image or mask is damaged, the encoder cannot be loaded,
            or the gate left nothing.
        FileNotFoundError: the case set, an image, a mask or the segmenter is missing.
        ChildProcessError: a worker process was killed.
        OSError: the disk is full.
    """
    start = time.monotonic()
    settings = context.recipe.counterfactual
    if settings.pairs is not None:
        return check_pairs(read_case_set(settings.pairs), read_case_set(context.case_set_dir))
    work = prepare(context)
    case_set, located, plan, parts = work.case_set, work.located, work.plan, work.parts
    finished = parts.read()
    before = len(finished.rows) + len(finished.left_out)
    trainer, seconds = make_open(context, work, finished)
    made = CaseSet(context.folder, [Case.from_row(row) for row in parts.rows(plan)])
    graded = grade(context, case_set, made, settings, segmenter_folder(context), located=located)
    rejected = [_with_reasons(case, reasons) for case, reasons in graded.rejected]
    together()
    if trainer.is_global_zero:
        parts.finish(plan, graded.accepted, rejected)
        write_gallery(
            CaseSet(context.folder, graded.accepted),
            case_set,
            context.folder / GALLERY,
            limit=settings.gallery,
            rejected=rejected,
            left_out=read_left_out(context.folder),
            summary=graded.summary,
            masks={name: one.file for name, one in located.items() if one.file and one.provenance != EXPERT},
        )
        parts.clean([*graded.accepted, *rejected])
    together()
    result = metrics(graded.accepted, rejected, plan, settings.fill, read_left_out(context.folder))
    result["quality"] = graded.summary
    result["masks"] = dict(Counter(located[task.case.id].provenance for task in plan.tasks if task.case.id in located))
    result["seconds"] = round(time.monotonic() - start, 2)
    # Making alone: finding masks and grading have their own pace.
    result["per_second"] = round(max(0, len(made.cases) - before) / max(seconds, 1e-9), 1)
    return result


def find_masks(context: StageContext) -> dict[str, Any]:
    """The first phase alone: find where the lesions are and plan what is made, for jobs that then make it.

    Returns:
        `source_cases`, `planned` (counterfactuals) and `masks` (by provenance).

    Raises:
        As `run`.
    """
    pairs = context.recipe.counterfactual.pairs
    if pairs is not None:
        return check_pairs(read_case_set(pairs), read_case_set(context.case_set_dir))
    work = prepare(context)
    together()
    tasks = work.plan.tasks
    masks = Counter(work.located[task.case.id].provenance for task in tasks if task.case.id in work.located)
    return {"source_cases": len(tasks), "planned": sum(len(task.edits) for task in tasks), "masks": dict(masks)}


def check_pairs(pairs: CaseSet, case_set: CaseSet) -> dict[str, Any]:
    """Check pairs that were made before, and count them.

    Raises:
        ValueError: a case is no counterfactual, not one of a case of this case set, or in another split than it.
    """
    for case in pairs.cases:
        if case.intervention not in INTERVENTIONS or case.counterfactual_of not in case_set.by_id:
            found = f"intervention {case.intervention!r} of {case.counterfactual_of!r}"
            raise ValueError(
                f"counterfactual.pairs: {pairs.root}, case {case.id!r}: found {found}, wanted one of "
                f"{', '.join(INTERVENTIONS)} of a case in {case_set.root}"
            )
        _check_split(case, pairs, case_set)
    return {"n": len(pairs.cases), "pairs": str(pairs.root), "counts": _counts(pairs.cases, pairs.splits)}


def _check_split(case: Case, pairs: CaseSet, case_set: CaseSet) -> None:
    """Raise where the case set was split anew since the pairs were made: what judges a model would be trained on."""
    background = case_set.by_id.get(case.background_of or "") if case.split in TAUGHT else None
    for shown in (case_set.by_id[str(case.counterfactual_of)], background):
        if shown is not None and shown.split != case.split != LEFT_OUT:
            raise ValueError(
                f"counterfactual.pairs: {pairs.root}, case {case.id!r}: found the split {case.split!r}, but {shown.id!r}, "
                f"which it shows, is in {shown.split!r} of {case_set.root}; make the pairs anew from this case set"
            )


def _with_reasons(case: Case, reasons: list[str]) -> Case:
    """The case with what failed beside its measures."""
    quality = {**case.attributes.get("quality", {}), "failed": reasons}
    return replace(case, attributes=case.attributes | {"quality": quality})


def metrics(
    accepted: Sequence[Case], rejected: Sequence[Case], plan: Plan, fill: str, left_out: dict[str, int]
) -> dict[str, Any]:
    """What goes into `stage.json` of what was made, accepted and rejected."""
    splits = list(dict.fromkeys(case.split for case in (*accepted, *rejected)))
    return {
        "n": len(accepted),
        "source_cases": len(plan.tasks),
        "counts": _counts(accepted, splits),
        "left_out": left_out,
        "rejected": dict(Counter(reason for case in rejected for reason in _reasons(case)).most_common()),
        "yield": _yields(accepted, rejected),
        "fill": fill,
    }


def _counts(cases: Sequence[Case], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """Number of counterfactuals by split, then by intervention."""
    counts = {split: Counter(case.intervention for case in cases if case.split == split) for split in splits}
    return {split: {name: counts[split][name] for name in INTERVENTIONS} for split in sorted(counts)}


def _reasons(case: Case) -> list[str]:
    reasons: list[str] = case.attributes["quality"]["failed"]
    return reasons


def _yields(accepted: Sequence[Case], rejected: Sequence[Case]) -> dict[str, float]:
    """Share of the counterfactuals of each intervention that passed the gate."""
    good, bad = (Counter(case.intervention for case in cases) for cases in (accepted, rejected))
    return {
        name: round(good[name] / (good[name] + bad[name]), 4) for name in INTERVENTIONS if good[name] + bad[name] > 0
    }
