"""Metrics to a CSV file, always, and to Weights & Biases if it works. The only file that imports wandb.

One row an optimizer step: everything that is known of a step, sample tables with images included,
goes into one call of `log_step`. A LightningModule logs with it and not with `self.log`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cogalign.recipe import Recipe
from cogalign.training.atomic import write_text
from cogalign.training.context import StageContext
from cogalign.training.progress import say

METRICS_FILE = "metrics.csv"
SAMPLES_FOLDER = "completions"
ID_FILE = "wandb_id.txt"
STEP_KEY = "trainer/global_step"
_environment_set: list[str] = []


class CsvLogger(Logger):
    """Writes `metrics.csv` with a column `step`, one row a step, on disk as soon as it is logged.

    Opened on a file that exists, it goes on with it: rows from the first step logged on are dropped
    (a run that was killed had logged steps after its last checkpoint). Metrics that come later for
    the same step go into the same row; new names become new columns.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._rows: list[dict[str, str]] = []
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
        if step is None:
            step = int(self._rows[-1]["step"]) if self._rows else 0
        if self._fresh:
            self._reopen(step)
        new = [name for name in values if name not in self._columns]
        same_step = bool(self._rows) and self._rows[-1]["step"] == str(step)
        if same_step:
            self._rows[-1].update(values)
        else:
            self._rows.append({"step": str(step), **values})
        if new or same_step or not self.path.exists():
            self._columns += new
            self._rewrite()
        else:
            self._append(self._rows[-1])

    def _reopen(self, step: int) -> None:
        """Take over the rows before `step` of a file that exists."""
        self._fresh = False
        self._columns, rows = read_rows(self.path)
        self._columns = self._columns or ["step"]
        self._rows = [row for row in rows if int(row["step"]) < step]
        if self.path.exists():
            self._rewrite()  # also drops a line that was cut off

    def _rewrite(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, buffer.getvalue())

    def _append(self, row: dict[str, str]) -> None:
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)


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


class StepWandbLogger(WandbLogger):
    """Lightning's wandb logger, with wandb's own step equal to the optimizer step.

    Without that, every call that names no step starts a new row and the steps double.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of a step; wandb writes the row when a later step comes or the run ends."""
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        if step is None:
            self.experiment.log(row, commit=False)
        else:
            self.experiment.log({**row, STEP_KEY: step}, step=step)


def build_loggers(recipe: Recipe, context: StageContext) -> list[Logger]:
    """The loggers of a training stage: CSV always, wandb if the recipe wants it and it works.

    Args:
        recipe: `tracking` is read, and the whole recipe becomes wandb's config.
        context: the stage; files go to its folder, wandb's to the run folder.

    wandb is offline unless WANDB_MODE says otherwise. An interrupted stage goes on under the same
    wandb id (`wandb_id.txt`); the group is the run's name. If wandb cannot be imported or started,
    a warning is printed and the CSV file is all.
    """
    loggers: list[Logger] = [CsvLogger(context.folder / METRICS_FILE)]
    if not recipe.tracking.wandb or os.environ.get("WANDB_MODE") == "disabled":
        return loggers
    try:
        loggers.append(_wandb_logger(recipe, context))
    except Exception as error:  # wandb fails in many ways, and none may cost a run
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"warning: wandb does not start ({reason}); metrics go to {context.folder / METRICS_FILE} only")
    return loggers


def _wandb_logger(recipe: Recipe, context: StageContext) -> Logger:
    """A started wandb run in the run folder."""
    from dataclasses import asdict

    import wandb

    finish_tracking()
    context.run_dir.mkdir(parents=True, exist_ok=True)
    # Without these, images of offline tables are staged below the home directory.
    for variable, folder in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        if variable not in os.environ:
            os.environ[variable] = str((context.run_dir / "wandb" / folder).absolute())
            _environment_set.append(variable)
    logger = StepWandbLogger(
        name=f"{recipe.name}/{context.stage}",
        version=_run_id(context.folder / ID_FILE),
        project=recipe.tracking.project,
        entity=recipe.tracking.entity,
        group=recipe.name,
        job_type=context.stage,
        save_dir=str(context.run_dir),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True),
    )
    # Lightning passes an option that wandb has dropped, and wandb prints a warning about it.
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)
    logger.log_hyperparams(asdict(recipe))
    return logger


def _run_id(path: Path) -> str:
    """The stage's wandb id: the one in the file, else a new one."""
    if path.exists() and (found := path.read_text(encoding="utf-8").strip()):
        return found
    new = uuid4().hex[:12]
    write_text(path, new + "\n")
    return new


@rank_zero_only
def log_step(
    loggers: Sequence[Logger],
    metrics: Mapping[str, float],
    step: int,
    samples: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Log all that is known of one optimizer step: one row in each logger.

    Args:
        loggers: from `build_loggers`.
        metrics: name → number.
        step: optimizer steps done, from 1.
        samples: rows of a table; the key `image` holds a PIL image, all others text or numbers.
            They go to wandb as the table `completions` and the list of images `samples`, in the row
            of the step, and as text to `completions/completions_<step>.jsonl` beside the CSV file.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            row = {**metrics, **(_wandb_samples(samples) if samples else {})}
            try:
                logger.log_metrics(row, step)
            except Exception as error:  # a broken connection to wandb must not end a training
                say(f"warning: wandb did not take step {step} ({error})")
        else:
            logger.log_metrics(dict(metrics), step)
        if samples and isinstance(logger, CsvLogger):
            _write_samples(samples, logger.path.parent / SAMPLES_FOLDER / f"completions_{step:05d}.jsonl")


def _wandb_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples as a wandb table with images, and as a list of images with their texts."""
    import wandb

    columns = list(dict.fromkeys(name for sample in samples for name in sample))
    rows, images = [], []
    for sample in samples:
        texts = {name: value for name, value in sample.items() if name != "image"}
        if sample.get("image") is not None:
            caption = "\n".join(f"{name}: {value}" for name, value in texts.items())
            images.append(wandb.Image(sample["image"], caption=caption))
        cells = {**texts, "image": wandb.Image(sample["image"]) if sample.get("image") is not None else None}
        rows.append([cells.get(name) for name in columns])
    found: dict[str, Any] = {"completions": wandb.Table(columns=columns, data=rows)}
    return {**found, "samples": images} if images else found


def _write_samples(samples: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Samples without their images, a JSON line each."""
    lines = [
        json.dumps({name: value for name, value in sample.items() if name != "image"}, ensure_ascii=False, default=str)
        for sample in samples
    ]
    write_text(path, "\n".join(lines) + "\n")


def finish_tracking(failed: bool = False) -> None:
    """End the wandb run of a stage, so that the next stage gets its own; nothing if there is none.

    Args:
        failed: mark the run as failed.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        try:
            wandb.finish(exit_code=1 if failed else 0)
            # Ends wandb's own process too: a second run with the same id in it can lose its rows.
            wandb.teardown()
        except Exception as error:
            say(f"warning: wandb did not end in good order ({error})")
    while _environment_set:
        os.environ.pop(_environment_set.pop(), None)
