"""The results of a study: `study.json`, `study.md`, `study.html` and `study.png`, from whatever runs are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cogalign import __version__
from cogalign.evaluation.audit import RATES
from cogalign.evaluation.storage import write_json
from cogalign.study.compare import comparisons
from cogalign.study.measures import Measure, measures_of
from cogalign.study.repeats import repeated_kinds
from cogalign.study.runs import ArmRun, read_events, read_runs
from cogalign.study.settings import StudySettings, read_study
from cogalign.study.table import RESAMPLES, table
from cogalign.training.atomic import write_bytes, write_text
from cogalign.training.progress import say


def write_results(out: Path, doubtful: Sequence[str] = ()) -> None:
    """Write the results of a study from the runs that are finished, and say which are missing.

    Args:
        out: the study's folder; only files below it are read.
        doubtful: names (`<arm>-seed<k>`) of runs that may have been done with other settings or inputs than those of
            the study; where they are finished they are shown, with a note.

    Raises:
        FileNotFoundError: there is no `study.yaml`.
        ValueError: no run is finished, or a file of one is damaged.
    """
    from cogalign.study import page, plots

    settings = read_study(out / "study.yaml")
    runs, missing = read_runs(out, settings)
    for line in missing:
        say(f"study: {line}")
    if not runs:
        raise ValueError(f"{out}: no run of this study is finished; start `cogalign study` without --results")
    repeated = repeated_kinds(out, list(settings.sets), runs[-1].predictions("audit"))
    result = results(settings, runs, missing, doubtful, repeated)
    shown = page.html(out, settings, result, runs)
    write_text(out / "study.md", page.markdown(result))
    write_bytes(out / "study.png", plots.png(page.headline_plot(result)))
    write_text(out / "study.html", shown)
    write_json(out / "study.json", result)  # the last: where it is there, so are the others
    say(f"study: {out / 'study.html'} shows the results of {len(runs)} of {len(runs) + len(missing)} runs")


def results(
    settings: StudySettings,
    runs: Sequence[ArmRun],
    missing: Sequence[str],
    doubtful: Sequence[str] = (),
    repeated: Mapping[str, Sequence[str]] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """All figures of a study, as they are written to `study.json`.

    Args:
        settings: the study.
        runs: the judged runs.
        missing: a line for each run that is not finished.
        doubtful: see `write_results`.
        repeated: audit set → kinds that repeat the study's own images, whose rates are left out (`repeated_kinds`).
        resamples: of each interval.

    Returns:
        `primary` (the measure that decides), `arms` (title, stage, steps and seconds by seed), `measures` (label, place,
        direction), `table` (measure → arm → value, `ci`, `n`, `groups`, `seeds`), `differences` (each arm against the
        reference) and `comparisons` (the study's pairs), see `compare.compare`; `missing`, `doubtful` and `notes`. All
        values are shares, also `spot_drop`, which a run's own `metrics.json` has in points.
    """
    reference = settings.reference or next(iter(settings.arms))
    events = read_events(runs, reference)
    keys = dict.fromkeys(key for frame in events.values() for key in frame["key"].unique())
    again = {f"{name}/{RATES[kind]}" for name, kinds in (repeated or {}).items() for kind in kinds}
    measures = [one for one in measures_of(keys) if one.key not in again]
    done = {f"{run.arm}-seed{run.seed}" for run in runs}
    others = [(arm, reference) for arm in settings.arms if arm != reference]
    return {
        "name": settings.name,
        "version": __version__,
        "seeds": list(settings.seeds),
        "reference": reference,
        "primary": settings.primary,
        "resamples": resamples,
        "arms": {arm: _arm(settings, arm, [run for run in runs if run.arm == arm]) for arm in settings.arms},
        "measures": {one.key: _described(one) for one in measures},
        "table": table(events, measures, resamples),
        "differences": comparisons(events, others, measures, resamples),
        "comparisons": comparisons(events, settings.compare, measures, resamples),
        "missing": list(missing),
        "doubtful": [name for name in doubtful if name in done],
        "notes": [
            *_notes(settings, events),
            *_notes_on_sets(repeated or {}),
            *(
                f"{name}: finished with other settings or inputs than those of this study"
                for name in doubtful
                if name in done
            ),
            *(
                []
                if settings.primary in (one.key for one in measures)
                else [f"{settings.primary}, the primary measure, was not asked"]
            ),
        ],
    }


def _arm(settings: StudySettings, arm: str, runs: Sequence[ArmRun]) -> dict[str, Any]:
    one = settings.arms[arm]
    steps = {str(run.seed): run.steps for run in runs}
    seconds = {str(run.seed): run.seconds for run in runs}
    told = [value for value in seconds.values() if value is not None]
    return {
        "title": one.title,
        "trains": one.trains,
        "after": one.after,
        "steps": steps,
        "seconds": seconds,
        "mean_seconds": float(np.mean(told)) if told else None,
    }


def _described(one: Measure) -> dict[str, Any]:
    return {"label": one.label, "title": one.title, "where": one.where, "name": one.name,
            "lower_is_better": one.lower_is_better, "points": one.signed, "audit": one.is_judgement}  # fmt: skip


def _notes(settings: StudySettings, events: Mapping[str, pd.DataFrame]) -> list[str]:
    """What a reader must know of arms that do not have all seeds."""
    notes = []
    for arm, frame in events.items():
        lacking = [seed for seed in settings.seeds if seed not in set(frame["seed"])]
        if lacking:
            told = ", ".join(map(str, lacking))
            notes.append(f"{settings.arms[arm].title}: without seed {told}; its means are over the others")
    notes += [f"{one.title}: no run is finished" for arm, one in settings.arms.items() if arm not in events]
    return notes


def _notes_on_sets(repeated: Mapping[str, Sequence[str]]) -> list[str]:
    """Which rates of audit sets are left out since they are those of the study's own pairs."""
    return [
        f"{name}: its images of kind {', '.join(kinds)} are those of the study's own pairs, and so are their rates; "
        "a causal score of this set counts them"
        for name, kinds in repeated.items()
    ]
