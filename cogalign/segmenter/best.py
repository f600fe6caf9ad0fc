"""The weights of the best validations on disk: of the best one, and of those to which a checkpoint may go back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from cogalign.training.checkpoints import steps_of

NAME = re.compile(r"best-(\d{8,})\.safetensors")
History = Mapping[int, Mapping[str, float]]
"""Figures of the validations, by optimizer step."""


def best_of(history: History) -> int | None:
    """The step of the validation with the best Dice, the first of equals; None if there was none."""
    return max(sorted(history), key=lambda step: history[step]["dice"], default=None)


def best_path(folder: Path, step: int) -> Path:
    """Where the weights lie that were the best ones at a step."""
    return folder / f"best-{step:08d}.safetensors"


def best_paths(folder: Path) -> dict[int, Path]:
    """All such files in a stage's folder, by step."""
    return {int(found[1]): path for path in sorted(folder.glob("best-*")) if (found := NAME.fullmatch(path.name))}


def drop_old(folder: Path, history: History) -> None:
    """Delete the weights to which no checkpoint can go back: those before the best ones of the oldest checkpoint."""
    oldest = min(steps_of(folder), default=0)
    needed = best_of({step: row for step, row in history.items() if step <= oldest})
    limit = best_of(history) if needed is None else needed
    for step, path in best_paths(folder).items():
        if limit is not None and step < limit:
            path.unlink(missing_ok=True)


def only_best(folder: Path, history: History) -> tuple[int, Path]:
    """Step and file of the best weights after the training; all others are deleted.

    Raises:
        FileNotFoundError: they are gone.
    """
    step = best_of(history)
    if step is None or not best_path(folder, step).is_file():
        raise FileNotFoundError(
            f"{folder}: the weights of the best validation (step {step}) are gone; delete the folder and run the "
            "segmenter again"
        )
    old = [path for other, path in best_paths(folder).items() if other != step]
    for path in (*old, *folder.glob(".best-*.tmp")):  # and what a killed process has left half written
        path.unlink(missing_ok=True)
    return step, best_path(folder, step)
