"""The newest value of metrics that a stage has logged, also when an earlier, interrupted run logged them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogalign.training.metrics_file import METRICS_FILE, read_rows


def last_metrics(folder: Path, names: Sequence[str]) -> dict[str, float | None]:
    """The last value of each metric in the `metrics.csv` of a stage; None where there is none.

    Args:
        folder: the stage's folder.
        names: the columns.
    """
    _, rows = read_rows(folder / METRICS_FILE)
    return {name: next((float(row[name]) for row in reversed(rows) if name in row), None) for name in names}
