"""The finished runs of a study, as files of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cogalign.evaluation.storage import read_frame
from cogalign.study.events import events_of
from cogalign.study.settings import StudySettings
from cogalign.training.stage_file import StageFile, read_stage_file

JUDGED = ("evaluate", "audit")
CURVES = {"sft": ("loss",), "grpo": ("reward", "rewards/diagnosis/mean", "kl")}
"""Columns of `metrics.csv` that the page plots, by stage; the loss of GRPO says nothing of its progress."""


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed, judged."""

    arm: str
    seed: int
    folder: Path
    steps: int | None
    """Optimizer steps, those of the arms before it included; None where a run does not say."""
    seconds: float | None
    """Training time in seconds, that of the arms before it included."""
    before: int
    """Optimizer steps of the arms before it."""

    def predictions(self, stage: str) -> pd.DataFrame:
        """Predictions of the stage `evaluate` or `audit`."""
        return read_frame(self.folder / stage / "predictions.parquet")


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """The run folder of an arm with a seed."""
    return out / "arms" / arm / f"seed{seed}"


def _finished(folder: Path) -> StageFile | None:
    record = read_stage_file(folder)
    return record if record is not None and record.status == "finished" else None


def _steps(record: StageFile) -> int | None:
    steps = record.metrics.get("steps")
    return int(steps) if isinstance(steps, int | float) else None


def read_runs(out: Path, settings: StudySettings) -> tuple[list[ArmRun], list[str]]:
    """The runs that are judged, in the order of the arms and seeds, and what is missing.

    Args:
        out: the study's folder.
        settings: the study.

    Returns:
        The runs, and a line for each that is not finished, which names its first unfinished stage.
    """
    runs, missing = [], []
    for arm, one in settings.arms.items():
        for seed in settings.seeds:
            folder = folder_of(out, arm, seed)
            open_stages = [stage for stage in (one.trains, *JUDGED) if _finished(folder / stage) is None]
            files = [stage for stage in JUDGED if not (folder / stage / "predictions.parquet").exists()]
            if open_stages or files:
                missing.append(f"{arm}, seed {seed}: {(open_stages or files)[0]} has not finished")
                continue
            chain = [(name, settings.arms[name].trains) for name in (*settings.before(arm), arm)]
            records = [_finished(folder_of(out, name, seed) / stage) for name, stage in chain]
            steps = [_steps(record) for record in records if record is not None]
            told = [value for value in steps if value is not None]
            whole = len(told) == len(chain)
            seconds = sum(record.seconds for record in records if record is not None) if all(records) else None
            runs.append(
                ArmRun(arm, seed, folder, sum(told) if whole else None, seconds, sum(told[:-1]) if whole else 0)
            )
    return runs, missing


def read_events(runs: Sequence[ArmRun], reference: str) -> dict[str, pd.DataFrame]:
    """Arm → its events of all seeds, with the column `seed`; see `events.events_of`.

    Args:
        runs: the judged runs.
        reference: the arm whose right answers are those that an arm should keep.
    """
    judged = {run.seed: run.predictions("evaluate") for run in runs if run.arm == reference}
    frames: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        known = None if run.arm == reference else judged.get(run.seed)
        events = events_of(run.predictions("evaluate"), run.predictions("audit"), known)
        frames.setdefault(run.arm, []).append(events.assign(seed=run.seed))
    return {arm: pd.concat(parts, ignore_index=True) for arm, parts in frames.items()}


def read_curves(run: ArmRun, stage: str) -> pd.DataFrame | None:
    """The logged steps of a run's training, as Lightning's CSV logger wrote them; None where there are none.

    Returns:
        `step` (those of the arms before it included) and what was logged of `CURVES`, one row a step.
    """
    path = run.folder / stage / "metrics.csv"
    try:
        frame = pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError, pd.errors.ParserError):
        return None
    names = [name for name in CURVES[stage] if name in frame]
    if "step" not in frame or not names:
        return None
    frame = frame[["step", *names]].apply(pd.to_numeric, errors="coerce").dropna(subset=["step"])
    frame = frame.groupby("step", as_index=False).last()
    return frame.assign(step=frame["step"] + run.before) if len(frame) else None
