"""The stage `evaluate`: how often each of the run's models is right, on every split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd

from cogalign.data.case import Case
from cogalign.data.caseset import read_case_set
from cogalign.data.lazy_image import lazy_image
from cogalign.evaluation.collect import Job, collect, stamp, subjects
from cogalign.evaluation.metrics import compare_models, summarize, with_findings
from cogalign.evaluation.questions import judged, summarize_questions
from cogalign.evaluation.report import write_report
from cogalign.evaluation.selection import spread
from cogalign.evaluation.storage import plain, write_json
from cogalign.training.context import StageContext
from cogalign.training.progress import say


def metrics_of(predictions: pd.DataFrame, resamples: int, seed: int, cases: Sequence[Case] = ()) -> dict[str, Any]:
    """Metrics of each model and split, and paired comparisons of each model with the one before it.

    Args:
        predictions: of all models on all splits.
        resamples: of each interval.
        seed: of the resampling.
        cases: those that were asked about; needed where there are question cases, which have metrics of their own.
    """
    models: dict[str, Any] = {}
    for (role, split), frame in predictions.groupby(["model", "split"], sort=False):
        questions = summarize_questions(judged(frame, cases), resamples, seed)
        models.setdefault(str(role), {})[str(split)] = summarize(frame, resamples, seed) | questions
    comparisons: dict[str, Any] = {}
    roles = list(models)
    for first, second in pairwise(roles):
        comparisons[f"{second}_vs_{first}"] = {
            str(split): compare_models(frame, first, second, resamples, seed)
            for split, frame in with_findings(predictions).groupby("split", sort=False)
        }
    return {"models": models, "comparisons": comparisons}


def run(context: StageContext) -> dict[str, Any]:
    """Judge the run's models on the splits of the case set.

    Writes `predictions.parquet` and `metrics.json` in the stage's folder, and `report.html` in the run's. Splits
    that the case set does not have, and models that the recipe does not make, are left out with a note.

    Returns:
        `models` (role → split → metrics), `comparisons` and `notes`.

    Raises:
        FileNotFoundError: a model whose stage is in the recipe has not been trained.
        ValueError: the case set has none of the splits.
    """
    settings = context.recipe.evaluate
    case_set = read_case_set(context.case_set_dir)
    present = [split for split in settings.splits if split in case_set.splits]
    if not present:
        raise ValueError(f"evaluate.splits: found {settings.splits}, wanted some of {case_set.splits}")
    notes = [f"split {split}: left out, the case set has none" for split in settings.splits if split not in present]
    models, left_out = subjects(context, settings.models)
    notes += left_out
    for note in notes:
        say(f"evaluate: {note}")
    cases = [case for split in present for case in spread(case_set.split(split), settings.limit)]
    predictions = collect(
        context, models, [Job("factual", cases, partial(lazy_image, case_set), stamp(case_set))],
        batch_size=settings.batch_size, max_completion_length=settings.max_completion_length,
    )  # fmt: skip
    figures = metrics_of(predictions, settings.bootstrap, context.recipe.seed, cases)
    result: dict[str, Any] = plain({**figures, "notes": notes})
    write_json(context.folder / "metrics.json", result)
    write_report(context)
    return result
