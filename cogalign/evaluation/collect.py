"""The run's models one after the other, each with a file of its predictions, so that a stopped stage goes on."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from cogalign import __version__
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, CaseSet
from cogalign.evaluation.kept import KeptCompletions
from cogalign.evaluation.predict import COLUMNS, frame_of, judge, predict_cases
from cogalign.evaluation.storage import read_frame, rows_of, write_frame
from cogalign.generation.drafts import Drafts
from cogalign.generation.hf import Completion
from cogalign.models.load import load_model
from cogalign.models.pixel_cache import cached
from cogalign.training.context import STAGE_OF_ROLE, StageContext
from cogalign.training.progress import say


@dataclass(frozen=True)
class Job:
    """Cases of one kind that every model is asked about."""

    kind: str
    cases: Sequence[Case]
    images: Callable[[Case], Image.Image]
    label: str = ""
    """What else decides the images (see `stamp`); part of the key of the stored predictions."""
    same: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Cases by id that are not asked: kind and id of the case of an earlier job with the same image and question."""


@dataclass(frozen=True)
class Subject:
    """One of the run's models."""

    role: str
    checkpoint: Path | None


def subjects(context: StageContext, wanted: Sequence[str]) -> tuple[list[Subject], list[str]]:
    """The models of the run that exist, and a note for each that is left out.

    Returns:
        Models in the order of `wanted`; one whose stage is neither in the recipe nor on disk is left out.

    Raises:
        FileNotFoundError: a model whose stage is in the recipe is not there; the message names the stage to run.
    """
    found: list[Subject] = []
    notes: list[str] = []
    for role in wanted:
        try:
            found.append(Subject(role, context.checkpoint(role)))
        except FileNotFoundError:
            stage = STAGE_OF_ROLE[role]
            if stage in context.recipe.stages:
                raise
            notes.append(f"model {role}: left out, its stage {stage} is not in the recipe")
    return found, notes


def _files_key(checkpoint: Path | None) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a checkpoint."""
    if checkpoint is None:
        return []
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return [(str(path.relative_to(checkpoint)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def stamp(case_set: CaseSet) -> str:
    """Size and time of the case set's table, which is written last: images that were made again have another one."""
    status = (case_set.root / METADATA).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def key_of(context: StageContext, subject: Subject, jobs: Sequence[Job], max_completion_length: int) -> str:
    """Twelve hex digits that change when the model, the cases or the way of asking change."""
    content: dict[str, Any] = {
        "version": __version__,
        "model": asdict(context.recipe.model),
        "files": _files_key(subject.checkpoint),
        "question": context.recipe.data.question,
        "length": max_completion_length,
        "jobs": [(job.kind, job.label, [case.to_row() for case in job.cases]) for job in jobs],
    }
    if any(job.same for job in jobs):
        content["same"] = [(job.kind, sorted(job.same.items())) for job in jobs]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _ask(
    context: StageContext, subject: Subject, jobs: Sequence[Job], kept: KeptCompletions, **options: Any
) -> pd.DataFrame:
    loaded = load_model(context.recipe.model, subject.checkpoint)
    loaded = cached(loaded, context.run_dir, context.recipe.data.cache_gb)
    frames: list[pd.DataFrame] = []
    said: dict[tuple[str, str], Completion] = {}
    drafts = Drafts()
    for job in jobs:
        frame = predict_cases(
            loaded, [case for case in job.cases if case.id not in job.same], job.images,
            question=context.recipe.data.question, model=subject.role, kind=job.kind, kept=kept, folder=context.folder,
            drafts=drafts, **options,
        )  # fmt: skip
        said |= {(job.kind, row.id): Completion(row.completion, (), row.finished) for row in rows_of(frame)}
        frames.append(_with_same(job, frame, said, subject.role))
    del loaded
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else frame_of([])


def _with_same(job: Job, asked: pd.DataFrame, said: Mapping[tuple[str, str], Completion], model: str) -> pd.DataFrame:
    """The predictions of a job in the order of its cases; what was said of an image goes to all cases that show it."""
    if not job.same:
        return asked
    known: dict[str, dict[str, Any]] = {row.id: row._asdict() for row in rows_of(asked)}
    for case in job.cases:
        if case.id in job.same:
            known[case.id] = judge(case, said[job.same[case.id]], model=model, kind=job.kind)
    return frame_of([known[case.id] for case in job.cases])


def _stored(path: Path, rows: int) -> pd.DataFrame | None:
    """A model's predictions of an earlier try; None if they are not there. A damaged file is removed."""
    if not path.exists():
        return None
    try:
        frame = read_frame(path)
        if len(frame) == rows and set(frame.columns) == set(COLUMNS):
            return frame
        problem = f"{len(frame)} rows and {len(frame.columns)} columns, wanted {rows} and {len(COLUMNS)}"
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
    say(f"warning: {path} is damaged ({problem}); the model is asked again")
    path.unlink()
    return None


def collect(
    context: StageContext,
    models: Sequence[Subject],
    jobs: Sequence[Job],
    *,
    batch_size: int,
    max_completion_length: int,
) -> pd.DataFrame:
    """Predictions of all models on all jobs, also written to `predictions.parquet` in the stage's folder.

    Each model's own predictions are kept in `models/`, and its completions there while it is asked; a stage that was
    stopped asks only what is missing.
    """
    frames = []
    total = sum(len(job.cases) for job in jobs)
    for subject in models:
        key = key_of(context, subject, jobs, max_completion_length)
        path = context.folder / "models" / f"{subject.role}-{key}.parquet"
        partial = path.with_suffix(".jsonl")
        frame = _stored(path, total)
        if frame is not None:
            say(f"{context.stage}: predictions of {subject.role} are already there")
        else:
            kept = KeptCompletions(partial)
            if kept:
                say(f"{context.stage}: {subject.role} goes on where it was stopped")
            asked = _ask(context, subject, jobs, kept, batch_size=batch_size,
                         max_completion_length=max_completion_length)  # fmt: skip
            write_frame(path, asked)
            # Read again, so that a table of many models has the same types whether or not it was stopped between them.
            frame = read_frame(path)
        for old in path.parent.glob(f"*{subject.role}-*"):
            if old != path:
                old.unlink()
        frames.append(frame)
    predictions = pd.concat(frames, ignore_index=True) if frames else frame_of([])
    write_frame(context.folder / "predictions.parquet", predictions)
    return predictions
