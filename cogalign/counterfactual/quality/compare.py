"""Compares fills on one case set: each removes the same lesions, in memory, and all are measured alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogalign.counterfactual import interventions as do
from cogalign.counterfactual.interventions import Operator, stream
from cogalign.counterfactual.masks import Image, Mask, area_problem, outside_box
from cogalign.counterfactual.plan import unsuitable
from cogalign.counterfactual.quality.compare_files import write_comparison
from cogalign.counterfactual.quality.gate import failures
from cogalign.counterfactual.quality.judge import Known, Row, measure_rows, set_measures
from cogalign.counterfactual.quality.measure import SHAPES, load_segmenter
from cogalign.counterfactual.quality.patches import largest_part
from cogalign.counterfactual.quality.probes import Floats, group_estimate
from cogalign.counterfactual.quality.stage import encoder_device, operator_of
from cogalign.counterfactual.quality.table import Table
from cogalign.counterfactual.quality.views import (
    Edit,
    SegmenterLike,
    Views,
    edit_views,
    normal_views,
    residuals,
    source_views,
)
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.spread import spread_evenly
from cogalign.models.encoder import FrozenEncoder
from cogalign.recipe import CounterfactualSettings, Fill, QualitySettings
from cogalign.training.context import StageContext
from cogalign.training.progress import track
from cogalign.training.seeding import derive_seed

NORMALS = 200
"""Normals that get every fill, at most."""
SHOWN = 6
"""Cases on the contact sheet."""


@dataclass
class _Run:
    """What a comparison collects."""

    table: Table = field(default_factory=Table)
    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    shown: list[tuple[str, list[Image]]] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)


def compare_fills(
    context: StageContext, fills: Sequence[Fill], limit: int | None, out: Path, segmenter: Path | None = None
) -> dict[str, Any]:
    """Remove the lesions of the same cases with each fill and say how well it is done.

    Cases are those with an expert's mask in `counterfactual.splits`; widths and limits are those of the recipe. Nothing
    is written but the results: `fills.json`, `.csv`, `.md`, `.svg` and the contact sheet `.png`.

    Args:
        context: recipe and case set.
        fills: names of the fills.
        limit: at most so many cases, spread evenly; None for all.
        out: folder of the results.
        segmenter: folder of a trained segmenter, or None.

    Returns:
        `fills`: by fill `n`, `yield`, `ms_an_image`, `seam`, `residual_classifier`, `cleared` (share of removals that
        the classifier calls free), `residual_segmenter`, `realism`, and the measures of `set_measures`, each with `value`,
        `ci` and `n`, or None; and notes on the measures.

    Raises:
        ValueError: no case has an expert's mask.
    """
    settings = context.recipe.counterfactual
    case_set = read_case_set(context.case_set_dir)
    cases = usable_cases(case_set, settings, limit)
    if not cases:
        raise ValueError(f"{case_set.root}: no focal lesion with a mask in {', '.join(settings.splits)}")
    splits = set(settings.splits)
    normals = spread_evenly([case for case in case_set.cases if case.is_normal and case.split in splits], NORMALS)
    device = encoder_device(context.recipe.trainer, 0)
    encoder = FrozenEncoder(settings.quality.encoder, settings.quality.side, device, settings.quality.batch_size)
    finder = None if segmenter is None else load_segmenter(segmenter, device)
    operators = {fill: replace(operator_of(settings), fill=fill) for fill in fills}
    run = _Run()
    shown = {case.id for case in spread_evenly(cases, SHOWN)}
    for case in track(cases, "fills: cases"):
        _one_case(run, case_set, case, operators, settings, encoder, finder, case.id in shown)
    for case in track(normals, "fills: normals"):
        _one_normal(run, case_set, case, operators, settings, encoder)
    known = Known({case.id: case for case in cases}, {case.id: case for case in normals})
    result = judge_fills(run.table, run.rows, known, fills, settings.quality)
    for fill in fills:
        result["fills"][fill]["ms_an_image"] = round(1000 * float(np.median(run.seconds[fill])), 2)
    result |= {"cases": len(cases), "case_set": sorted({case.dataset for case in cases})}
    write_comparison(result, run.shown, fills, out)
    return result


def usable_cases(case_set: CaseSet, settings: CounterfactualSettings, limit: int | None) -> list[Case]:
    """Cases of the recipe's splits with an expert's mask of focal lesions that is neither too small nor too large."""
    splits = set(settings.splits)
    found = [
        case
        for case in case_set.cases
        if case.split in splits and case.mask_file_name is not None and unsuitable(case) is None
    ]
    trusted = []
    for case in found:
        mask = case_set.mask(case)
        if mask is not None and area_problem(mask, settings.min_area, settings.max_area) is None:
            trusted.append(case)
    return spread_evenly(trusted, limit)


def _one_case(
    run: _Run,
    case_set: CaseSet,
    case: Case,
    operators: dict[Fill, Operator],
    settings: CounterfactualSettings,
    encoder: FrozenEncoder,
    segmenter: SegmenterLike | None,
    show: bool,
) -> None:
    """Remove the lesions of a case with each fill, and measure."""
    image = np.asarray(case_set.image(case))
    found = case_set.mask(case)
    assert found is not None  # usable_cases
    mask = outside_box(image, found)
    if not mask.any():
        return
    edits = []
    for fill, operator in operators.items():
        start = time.perf_counter()
        edited = do.removal(image, mask, operator, stream(settings.seed, case.id, "removal"))
        run.seconds.setdefault(fill, []).append(time.perf_counter() - start)
        if edited is not None:
            edits.append(Edit(f"{case.id} {fill}", "removal", edited.image, image, edited.touched))
            run.rows.append(Row(edits[-1].id, case.id, "removal"))
    if not edits:
        return
    rng = np.random.default_rng(derive_seed(settings.seed, "free", case.id))
    views, side = source_views(case.id, image, edits[0].touched, rng)
    for edit in edits:
        views.add(edit_views(edit, side))
    if segmenter is not None:
        for edit_id, values in residuals(edits, segmenter).numbers.items():
            views.note(edit_id, **values)
    _encode(run.table, case.id, views, encoder)
    run.masks.append(largest_part(mask))
    if show:
        run.shown.append((case.id, [image, *(edit.image for edit in edits)]))


def _one_normal(
    run: _Run,
    case_set: CaseSet,
    case: Case,
    operators: dict[Fill, Operator],
    settings: CounterfactualSettings,
    encoder: FrozenEncoder,
) -> None:
    """Fill a place of a lesion's shape in a normal with each fill; all get the same place."""
    seed = [derive_seed(settings.seed, "normal", case.id)]
    drawn = np.random.default_rng(seed).permutation(len(run.masks))[:SHAPES]
    shapes = [run.masks[place] for place in drawn.tolist()]
    named = [(f" {fill}", operator) for fill, operator in operators.items()]
    views = normal_views(case.id, np.asarray(case_set.image(case)), shapes, named, seed)
    _encode(run.table, case.id, views, encoder)


def _encode(table: Table, unit: str, views: Views, encoder: FrozenEncoder) -> None:
    table.add([unit], views, encoder.features([picture for _, _, picture in views.pictures]))


def judge_fills(
    table: Table, rows: Sequence[Row], known: Known, fills: Sequence[Fill], settings: QualitySettings
) -> dict[str, Any]:
    """All measures by fill; the classifier of lesions is one for all fills, and has seen no fill."""
    quality, notes = measure_rows(table, rows, known, settings)
    result: dict[str, Any] = {}
    for fill in track(list(fills), "fills: probes"):
        own = [row for row in rows if row.id.endswith(f" {fill}")]
        kept = [not failures(quality[row.id], row.intervention, settings) for row in own]
        measures = {
            "yield": _estimate([float(passed) for passed in kept], own, known, settings),
            "seam": _of(quality, "seam", own, known, settings, np.median),
            "residual_classifier": _of(quality, "residual_classifier", own, known, settings),
            "cleared": _of(quality, "residual_classifier", own, known, settings, _share_free),
            "residual_segmenter": _of(quality, "residual_segmenter", own, known, settings),
            "realism": _of(quality, "realism", own, known, settings, np.median),
        }
        result[fill] = {"n": len(own), **measures, **set_measures(table, own, known, settings, f" {fill}")}
    before = _of(quality, "lesion_before", rows, known, settings)
    return {"fills": result, "lesion_before": before, **notes}


def _share_free(values: Floats) -> float:
    return float(np.mean(values <= 0.5))


def _of(
    quality: dict[str, dict[str, float | None]],
    measure: str,
    rows: Sequence[Row],
    known: Known,
    settings: QualitySettings,
    statistic: Any = np.mean,
) -> dict[str, Any] | None:
    there = [row for row in rows if quality[row.id].get(measure) is not None]
    return _estimate([quality[row.id][measure] for row in there], there, known, settings, statistic)


def _estimate(
    values: Sequence[Any], rows: Sequence[Row], known: Known, settings: QualitySettings, statistic: Any = np.mean
) -> dict[str, Any] | None:
    groups = known.groups([row.source for row in rows])
    found = group_estimate(values, groups, statistic, resamples=settings.bootstrap)
    return None if found is None else found.plain()
