"""The quality gate as the stage calls it: measure, judge, summarise, and keep apart what fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cogalign.counterfactual.interventions import Operator
from cogalign.counterfactual.located import Located
from cogalign.counterfactual.quality.gate import failures
from cogalign.counterfactual.quality.judge import Known, Row, measure_rows, set_measures
from cogalign.counterfactual.quality.measure import (
    QualityModule,
    QualityWriter,
    Units,
    digest,
    load_segmenter,
    open_units,
    units_of,
)
from cogalign.counterfactual.quality.summary import summarise, write_summary
from cogalign.counterfactual.quality.table import TableParts
from cogalign.counterfactual.workers import told_of_killed
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.models.encoder import FrozenEncoder
from cogalign.recipe import CounterfactualSettings, TrainerSettings
from cogalign.training.context import StageContext
from cogalign.training.progress import say
from cogalign.training.ranks import is_first
from cogalign.training.trainer import build_trainer, processes, uses_gpu


@dataclass(frozen=True)
class Graded:
    """The counterfactuals that pass, those that do not with their reasons, and what is to be said of the set.

    `attributes["quality"]` of both holds the measures.
    """

    accepted: list[Case]
    rejected: list[tuple[Case, list[str]]]
    summary: dict[str, Any]


def operator_of(settings: CounterfactualSettings) -> Operator:
    """The operator of these settings."""
    return Operator(settings.fill, settings.sigma, settings.feather, settings.dilate, settings.diffusion_model)


def grade(
    context: StageContext,
    case_set: CaseSet,
    made: CaseSet,
    settings: CounterfactualSettings,
    segmenter: Path | None = None,
    *,
    located: Mapping[str, Located] | None = None,
) -> Graded:
    """Measure all counterfactuals and tell which are good enough; writes `quality.json`, `.csv`, `.md` and `.svg`.

    An interrupted call goes on where it stopped; the part files stay, so that other limits need no new measuring. All
    ranks call it; all get the same result, the first one writes.

    Args:
        context: recipe and folders; the results go into `context.folder`.
        case_set: the factual cases.
        made: the counterfactuals: rows and the folder with their pictures.
        settings: stage 2's settings.
        segmenter: folder of a trained segmenter, or None: then what it would measure is None.
        located: masks by case id, for cases whose mask is not the case set's own.

    Raises:
        FileNotFoundError, ValueError: a picture is missing or unreadable, or the encoder cannot be loaded.
        ChildProcessError: a worker process was killed.
        RuntimeError: a case was not measured: the ranks do not see one another's files.
        OSError: the disk is full.
    """
    if not settings.quality.enabled:
        return Graded(list(made.cases), [], {})
    parts = TableParts(context.folder, digest(settings, made, str(segmenter or "")))
    units = units_of(case_set, made)
    before = parts.read()
    opened = open_units(units, before.units)
    if before.units:
        say(f"quality: going on, {len(units) - len(opened)} of {len(units)} cases were measured before")
    if opened:
        data = Units(case_set, made, opened, operator_of(settings), settings.seed, located or {})
        _measure(context, data, parts, settings, segmenter)
    table = parts.read()
    missing = [unit.name for unit in units if unit.name not in table.units]
    if missing:
        raise RuntimeError(
            f"{parts.folder}: {len(missing)} of {len(units)} cases were not measured, the first {missing[0]!r}; do all "
            "processes see this folder, and have they the same recipe?"
        )
    rows = [Row.of(case) for case in made.cases]
    known = Known(
        {unit.case.id: unit.case for unit in units if unit.rows},
        {unit.case.id: unit.case for unit in units if not unit.rows},
    )
    quality, notes = measure_rows(table, rows, known, settings.quality)
    accepted, rejected = _sort(made, quality, settings)
    summary = summarise(accepted, rejected, settings) | notes
    summary["set"] = {settings.fill: set_measures(table, rows, known, settings.quality)}
    if is_first():
        parts.remove_others()
        write_summary(summary, [*accepted, *(case for case, _ in rejected)], settings, context.folder)
    return Graded(accepted, rejected, summary)


def _sort(
    made: CaseSet, quality: dict[str, dict[str, float | None]], settings: CounterfactualSettings
) -> tuple[list[Case], list[tuple[Case, list[str]]]]:
    """Cases with their measures: those that pass, and those that do not."""
    accepted: list[Case] = []
    rejected: list[tuple[Case, list[str]]] = []
    for case in made.cases:
        measured = replace(case, attributes=case.attributes | {"quality": quality[case.id]})
        reasons = failures(quality[case.id], case.intervention, settings.quality)
        if reasons:
            rejected.append((measured, reasons))
        else:
            accepted.append(measured)
    return accepted, rejected


def _measure(
    context: StageContext, data: Units, parts: TableParts, settings: CounterfactualSettings, segmenter: Path | None
) -> None:
    """Run the measuring over the ranks."""
    trainer_settings = context.recipe.trainer
    # As in the stage before, Lightning's ranks are CPU processes; a GPU only encodes.
    trainer = build_trainer(
        context.recipe,
        folder=context.folder,
        callbacks=[QualityWriter(parts, len(data))],
        accelerator="cpu",
        devices=processes(trainer_settings),
        precision="32-true",
        inference_mode=False,
    )
    device = encoder_device(trainer_settings, trainer.local_rank)
    quality = settings.quality

    def encoder() -> FrozenEncoder:
        return FrozenEncoder(quality.encoder, quality.side, device, quality.batch_size)

    find = None if segmenter is None else (lambda: load_segmenter(segmenter, device))
    with told_of_killed("quality", "what was measured"):
        trainer.predict(QualityModule(data, encoder, find, settings.workers), return_predictions=False)


def encoder_device(settings: TrainerSettings, rank: int) -> str:
    """Where the encoder of a rank runs: a GPU where the recipe takes one, else the CPU."""
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if uses_gpu(settings) else "cpu"
