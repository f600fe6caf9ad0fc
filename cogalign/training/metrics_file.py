"""`metrics.csv`: what a training stage has logged, one row a step, exact over any number of restarts."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from cogalign.training.atomic import write_text

METRICS_FILE = "metrics.csv"
STEP_KEY = "trainer/global_step"
"""Name under which Lightning and wandb know the step; the file has the column `step` instead."""


class CsvLogger(Logger):
    """Writes `metrics.csv` with a column `step`, one row a step, on disk as soon as it is logged.

    Opened on a file that exists, it goes on with it: rows from the first step logged on are dropped
    (a run that was killed had logged steps after its last checkpoint; see also `go_on_after`). Metrics that come later for
    the same step go into the same row; new names become new columns.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._last: dict[str, str] = {}
        self._fresh = True

    @property
    def name(self) -> str:
        """Name that Lightning asks for."""
        return "csv"

    @property
    def version(self) -> str:
        """Version that Lightning asks for."""
        return "0"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's `recipe.yaml` says it all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics of a step.

        Args:
            metrics: name → number; Lightning's own `epoch` is left out.
            step: optimizer step; None is the step of the last row.
        """
        values = {name: _text(value) for name, value in metrics.items() if name not in ("epoch", STEP_KEY)}
        if self._fresh:
            self._reopen(step)
        if step is None:
            step = int(self._last.get("step", 0))
        before = self._last
        same_step = before.get("step") == str(step)
        self._last = {**before, **values} if same_step else {"step": str(step), **values}
        new = [name for name in values if name not in self._columns]
        if new or not self.path.exists():
            self._columns += new
            self._rewrite([*self._rows(but_last=same_step), self._last])
        elif same_step:
            self._replace_last(before)
        else:
            with open(self.path, "ab") as file:
                file.write(self._line(self._last))

    def go_on_after(self, step: int) -> None:
        """Drop the rows of later steps than a checkpoint's; that of its own step stays and may still get values."""
        self._reopen(step + 1)

    def flush(self) -> None:
        """Flush the rows to disk: a checkpoint must not outlive them when the power goes."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def _reopen(self, step: int | None) -> None:
        """Take over the rows before `step` of a file that exists."""
        self._fresh = False
        self._columns, rows = read_rows(self.path)
        self._columns = self._columns or ["step"]
        rows = [row for row in rows if step is None or int(row["step"]) < step]
        self._last = rows[-1] if rows else {}
        if self.path.exists():
            self._rewrite(rows)  # also drops a line that was cut off

    def _rows(self, but_last: bool) -> list[dict[str, str]]:
        """The rows of the file, read again: a long training need not hold them in memory."""
        _, rows = read_rows(self.path)
        return rows[:-1] if but_last else rows

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, buffer.getvalue())

    def _replace_last(self, before: Mapping[str, str]) -> None:
        """Write the last row anew where it lies: the whole file, once a validation, would take time with its square."""
        old, new = self._line(before), self._line(self._last)
        with open(self.path, "rb+") as file:
            start = file.seek(0, os.SEEK_END) - len(old)
            file.seek(max(0, start))
            # A shorter row would leave the old one's end behind it if the process were killed right now.
            if start > 0 and len(new) >= len(old) and file.read() == old:
                file.seek(start)
                file.write(new)
                return
        self._rewrite([*self._rows(but_last=True), self._last])

    def _line(self, row: Mapping[str, str]) -> bytes:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self._columns, lineterminator="\n").writerow(row)
        return buffer.getvalue().encode()


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows of a `metrics.csv`; a line cut off by a kill is left out.

    Returns:
        The columns and the rows; both empty if there is no file.
    """
    if not path.exists():
        return [], []
    text = path.read_text(encoding="utf-8", errors="replace")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    columns = list(reader.fieldnames or [])
    rows = [
        {name: value for name, value in row.items() if name is not None and value not in (None, "")}
        for row in reader
        if (row.get("step") or "").isdigit()
    ]
    return columns, rows


def _text(value: Any) -> str:
    """A number as CSV text; whole numbers without a point."""
    number = float(value)
    return str(int(number)) if math.isfinite(number) and number == int(number) and abs(number) < 2**53 else repr(number)
