"""Run a model over cases: one row a prediction, with what was said and whether it was right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from cogalign.cognition.keywords import count_found
from cogalign.cognition.report import parse
from cogalign.data.case import Case
from cogalign.data.collator import question_of
from cogalign.evaluation.kept import KeptCompletions
from cogalign.evaluation.location import location_correct
from cogalign.evaluation.metrics import exact_match
from cogalign.generation.drafts import Drafts
from cogalign.generation.hf import Completion, generate
from cogalign.models.load import LoadedModel
from cogalign.models.pixel_ahead import batches_ahead
from cogalign.training.progress import track

COLUMNS = (
    "model", "split", "kind", "id", "group", "counterfactual_of", "organ", "findings", "diagnosis", "unknown",
    "location", "gold_location", "completion", "finished", "correct", "location_correct", "cognition", "format",
)  # fmt: skip
"""Columns of a frame of predictions.

`kind` is `factual`, an intervention (`removal`, `control`, `transplant`, `background`), `removal_of_one`, `spots` or
`background_blur`; of an audit set's pairs it bears the set's name, as `unseen_fill/removal` (`cogalign.evaluation.audit_sets`),
and ids are unique within a kind only. `counterfactual_of` is the unedited case, asked once as `factual` for all sets.
`group` is the unit that is resampled; `findings` is the truth and `diagnosis` what was said, both lists of ids; `unknown` holds
diagnoses that no finding is named; `location_correct` may be None (nobody knows where it is); `cognition` is the share
of the case's keywords in the completion, NaN where it has none; `format`: three headings and a diagnosis.
"""


def group_of(case: Case) -> str:
    """The unit of resampling: the case's group, else what it was made of, else the case itself."""
    return case.group or case.counterfactual_of or case.id


def judge(case: Case, completion: Completion, *, model: str, kind: str) -> dict[str, Any]:
    """The row of one prediction (see `COLUMNS`)."""
    said = parse(completion.text)
    gold_location = parse(case.answer).location
    total = sum(len(words) for words in case.keywords.values())
    return {
        "model": model,
        "split": case.split,
        "kind": kind,
        "id": case.id,
        "group": group_of(case),
        "counterfactual_of": case.counterfactual_of,
        "organ": case.organ,
        "findings": list(case.findings),
        "diagnosis": list(said.diagnosis),
        "unknown": list(said.unknown),
        "location": said.location,
        "gold_location": gold_location,
        "completion": completion.text,
        "finished": completion.finished,
        "correct": exact_match(case.findings, said.diagnosis, said.unknown),
        "location_correct": location_correct(said.location, gold_location, case.organ),
        "cognition": count_found(completion.text, case.keywords) / total if total else math.nan,
        "format": not said.missing,
    }


def frame_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A frame of predictions from the rows of `judge`, with all columns even when there is no row."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    types = {
        "correct": "bool",
        "finished": "bool",
        "format": "bool",
        "location_correct": "boolean",
        "cognition": "float64",
    }
    return frame.astype(types)


def predict_cases(
    loaded: LoadedModel,
    cases: Sequence[Case],
    images: Callable[[Case], Image.Image],
    *,
    question: str,
    model: str,
    kind: str = "factual",
    batch_size: int = 64,
    max_completion_length: int = 512,
    kept: KeptCompletions | None = None,
    folder: Path | None = None,
    drafts: Drafts | None = None,
) -> pd.DataFrame:
    """What a model says of cases (greedy decoding), and whether it is right.

    Args:
        loaded: the model and its processor.
        cases: what is asked about, in the order of the rows.
        images: gives the image of a case; called once a case, at most a batch ahead of the model and then in a thread,
            so that images need not fit in memory.
        question: the question of every prompt whose case has none of its own.
        model: name of the model in the column `model`.
        kind: value of the column `kind`.
        batch_size: prompts generated at once.
        max_completion_length: longest completion in tokens.
        kept: completions of an earlier try, and where those of this one are kept; None keeps nothing.
        folder: where `progress.json` is written, if anywhere.
        drafts: answers that this model gave before; those that it gives are added.

    Returns:
        One row a case, with `COLUMNS`.
    """
    store = KeptCompletions(None) if kept is None else kept
    batches = [cases[start : start + batch_size] for start in range(0, len(cases), batch_size)]
    done = [store.get(kind, [case.id for case in batch]) for batch in batches]
    missing = [batch for batch, known in zip(batches, done, strict=True) if known is None]
    before = len(cases) - sum(map(len, missing))
    pictures = batches_ahead(
        getattr(loaded, "processor", None), missing, lambda batch: [images(case) for case in batch]
    )
    progress = iter(track(range(len(cases) - before), f"{model}: {kind}, images", folder=folder, before=before))
    next(progress, None)
    rows: list[dict[str, Any]] = []
    for batch, known in zip(batches, done, strict=True):
        completions = known
        if completions is None:
            groups = generate(
                loaded,
                next(pictures),
                [question_of(case, question) for case in batch],
                max_completion_length=max_completion_length,
                batch_size=batch_size,
                drafts=drafts,
            )
            completions = [group[0] for group in groups]
            store.put(kind, [case.id for case in batch], completions)
            for _ in batch:
                next(progress, None)
        elif drafts is not None:
            for one in completions:
                drafts.learn(one.token_ids)
        rows += [judge(case, one, model=model, kind=kind) for case, one in zip(batch, completions, strict=True)]
    for _ in pictures:  # ends the thread that reads ahead
        pass
    return frame_of(rows)
