"""The stage `audit`: every model on pairs of images that differ in the lesion or in the background only."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import read_case_set
from cogalign.data.lazy_image import lazy_image
from cogalign.evaluation.audit import RATES, REMAINING, audit_model, kind_of
from cogalign.evaluation.collect import Job, collect, stamp, subjects
from cogalign.evaluation.perturbations import spots
from cogalign.evaluation.report import write_report
from cogalign.evaluation.selection import spread, stream
from cogalign.evaluation.storage import plain, write_json
from cogalign.training.context import StageContext
from cogalign.training.progress import say


def plan(context: StageContext) -> list[Job]:
    """What every model is asked: unedited images, the same under spots, and each intervention."""
    settings, seed = context.recipe.audit, context.recipe.seed
    factual_set, pairs = read_case_set(context.case_set_dir), read_case_set(context.counterfactual_dir)
    rows = [case for case in pairs.cases if case.split == settings.split and case.counterfactual_of]
    if not rows:
        found = sorted({case.split for case in pairs.cases})
        raise ValueError(
            f"audit.split: found {settings.split!r}, but {pairs.root} has counterfactuals of {', '.join(found)} only; "
            "add it to counterfactual.splits, or see left_out.json there for why its cases have none"
        )
    kinds = (*RATES, REMAINING)
    edited = {kind: spread([case for case in rows if kind_of(case) == kind], settings.limit) for kind in kinds}
    wanted = {case.counterfactual_of for cases in edited.values() for case in cases}
    missing = sorted(str(name) for name in wanted if name not in factual_set.by_id)
    if missing:
        raise ValueError(
            f"{pairs.root}: counterfactual_of {missing[0]!r} is not in {factual_set.root}; "
            "run the stage counterfactual again"
        )
    judged = [case for case in factual_set.split(settings.split) if not case.is_question]
    plain_cases = spread(judged, settings.limit)
    wanted.update(case.id for case in plain_cases)
    sources = [case for case in factual_set.cases if case.id in wanted]

    def spotted(case: Case) -> Image.Image:
        pixels = np.asarray(factual_set.image(case))
        return Image.fromarray(spots(pixels, stream(seed, case.id), settings.spots))

    jobs = [
        Job("factual", sources, partial(lazy_image, factual_set), stamp(factual_set)),
        Job("spots", plain_cases, spotted, f"{settings.spots} spots, seed {seed}, {stamp(factual_set)}"),
    ]
    return jobs + [
        Job(kind, cases, partial(lazy_image, pairs), stamp(pairs)) for kind, cases in edited.items() if cases
    ]


def run(context: StageContext) -> dict[str, Any]:
    """Audit the run's models on the counterfactuals of `audit.split`.

    Writes `predictions.parquet` and `metrics.json` in the stage's folder and `report.html` in the run's.

    Returns:
        `models` (role → rates with `_ci` and `_n`) and `notes`.

    Raises:
        FileNotFoundError: there is no counterfactual case set, or a model of the recipe has not been trained.
        ValueError: the split has no counterfactuals, or their sources are not in the case set.
    """
    settings = context.recipe.audit
    jobs = plan(context)
    models, notes = subjects(context, settings.models)
    asked = sum(case.is_question and case.split == settings.split for case in read_case_set(context.case_set_dir).cases)
    if asked:
        notes.append(f"{asked} question cases have no findings: left out of the audit")
    absent = [kind for kind in RATES if kind not in {job.kind for job in jobs}]
    if absent:
        notes.append(f"no counterfactual of kind {', '.join(absent)}: that rate and the causal score are left out")
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
