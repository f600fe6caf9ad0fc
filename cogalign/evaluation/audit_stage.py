"""The stage `audit`: every model on pairs of images that differ in the lesion or in the background only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cogalign.data.caseset import read_case_set
from cogalign.evaluation.audit import BACKGROUND_BLUR, audit_model
from cogalign.evaluation.audit_plan import absent_kinds, plan
from cogalign.evaluation.collect import Job, collect, subjects
from cogalign.evaluation.report import write_report
from cogalign.evaluation.storage import plain, write_json
from cogalign.training.context import StageContext
from cogalign.training.progress import say


def notes_on(context: StageContext, jobs: Sequence[Job]) -> list[str]:
    """What the audit leaves out, and why."""
    settings = context.recipe.audit
    notes = []
    asked = sum(case.is_question and case.split == settings.split for case in read_case_set(context.case_set_dir).cases)
    if asked:
        notes.append(f"{asked} question cases have no findings: left out of the audit")
    for name in (None, *(item.name for item in settings.sets)):
        absent = absent_kinds(jobs, name)
        if absent:
            where = "" if name is None else f"audit set {name}: "
            notes.append(
                f"{where}no counterfactual of kind {', '.join(absent)}: that rate and the causal score are left out"
            )
    if settings.background_blur is not None and all(job.kind != BACKGROUND_BLUR for job in jobs):
        notes.append(f"no case of {settings.split} has a mask of focal lesions: background_blur_keep_rate is left out")
    return notes


def run(context: StageContext) -> dict[str, Any]:
    """Audit the run's models on the counterfactuals of `audit.split`.

    Writes `predictions.parquet` and `metrics.json` in the stage's folder and `report.html` in the run's.

    Returns:
        `models` (role → rates with `_ci` and `_n`; `sets`: the rates of each audit set by its name) and `notes`.

    Raises:
        FileNotFoundError: there is no counterfactual case set, or a model of the recipe has not been trained.
        ValueError: the split has no counterfactuals, or their sources are not in the case set.
    """
    settings = context.recipe.audit
    jobs = plan(context)
    models, notes = subjects(context, settings.models)
    notes += notes_on(context, jobs)
    for note in notes:
        say(f"audit: {note}")
    predictions = collect(
        context, models, jobs, batch_size=settings.batch_size, max_completion_length=settings.max_completion_length
    )
    rates = {
        str(role): audit_model(frame, settings.bootstrap, context.recipe.seed)
        for role, frame in predictions.groupby("model", sort=False)
    }
    result: dict[str, Any] = plain({"models": rates, "notes": notes})
    write_json(context.folder / "metrics.json", result)
    write_report(context)
    return result
