"""Metrics to a CSV file, always, and to Weights & Biases if it works. The only file that imports wandb.

One row an optimizer step: everything that is known of a step, sample tables with images included,
goes into one call of `log_step`. A LightningModule logs with it and not with `self.log`.

A stage that is stopped and goes on keeps its wandb id. Offline each life writes a folder
`RUN/wandb/offline-run-<time>-<id>` of its own, and all of them together hold each step once. With wandb 0.31
one command uploads them in the order of their starts, each after the last row that the server has::

    wandb sync RUN/wandb/offline-run-*
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cogalign.recipe import Recipe
from cogalign.training import wandb_log
from cogalign.training.atomic import write_text
from cogalign.training.checkpoints import latest_checkpoint, read
from cogalign.training.context import StageContext
from cogalign.training.errors import first_line
from cogalign.training.launched import is_main_process
from cogalign.training.metrics_file import METRICS_FILE, STEP_KEY, CsvLogger, read_rows
from cogalign.training.progress import say

__all__ = ["METRICS_FILE", "CsvLogger", "StepWandbLogger", "build_loggers", "current_id", "finish_tracking", "log_step",
           "read_rows", "restore_id"]  # fmt: skip
SAMPLES_FOLDER = "completions"
ID_FILE = "wandb_id.txt"
CHECKPOINT_KEY = "wandb_id"
"""Where a checkpoint keeps the id."""
START_SECONDS = 10.0
"""How long a server may take to answer when a run starts (WANDB_INIT_TIMEOUT)."""
FINISH_SECONDS = 30.0
"""How long the last rows may take to the server when a run ends (WANDB_FINISH_TIMEOUT); they stay on disk."""
_environment_set: list[str] = []


class StepWandbLogger(WandbLogger):
    """Lightning's wandb logger, with wandb's own step equal to the optimizer step, and each step logged once.

    Without the first, every call that names no step starts a new row and the steps double. As to the second:
    wandb can neither go back nor take rows away. A run that was killed goes on after its last checkpoint, so it logs
    steps that wandb holds: they are left out (training goes on exactly, so they are the same). And it may lack rows
    that were not yet on disk: they are taken from the CSV file.

    Args:
        csv: the CSV file of the same stage.
        held: the last step that earlier lives have left on disk; 0 if none.
        options: for Lightning's logger.
    """

    def __init__(self, csv: Path, held: int, **options: Any) -> None:
        super().__init__(**options)
        self._csv, self._held = csv, held
        self._is_caught_up = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of a step; wandb writes the row when a later step comes or the run ends."""
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        if step is None:
            self.experiment.log(row, commit=False)
            return
        if not self._is_caught_up:
            self._catch_up(step)
        if step > self._held:
            self.experiment.log({**row, STEP_KEY: step}, step=step)

    def _catch_up(self, first: int) -> None:
        """Log the rows up to the first step of this life that wandb does not hold; the CSV file has that one already."""
        self._is_caught_up = True
        # What the server has; 0 offline.
        self._held = max(self._held, int(getattr(self.experiment, "starting_step", 0)) - 1)
        for row in read_rows(self._csv)[1]:
            step = int(row.pop("step"))
            if self._held < step <= first:
                self.experiment.log({**{name: float(text) for name, text in row.items()}, STEP_KEY: step}, step=step)


def build_loggers(recipe: Recipe, context: StageContext) -> list[Logger]:
    """The loggers of a training stage: CSV always, wandb if the recipe wants it and it works.

    Args:
        recipe: `tracking` is read, and the whole recipe becomes wandb's config (it holds no secrets: of an API key
            it has the name of the environment variable only).
        context: the stage; files go to its folder, wandb's to the run folder.

    wandb is offline unless WANDB_MODE says otherwise. An interrupted stage goes on under the same
    wandb id (`wandb_id.txt`, else that of its newest checkpoint); the group is the run's name. A server that does not
    answer is a warning, and the run is written offline. If wandb cannot be imported or started, a warning is printed
    and the CSV file is all. Of several processes only the first one has wandb.
    """
    loggers: list[Logger] = [CsvLogger(context.folder / METRICS_FILE)]
    if not recipe.tracking.wandb or os.environ.get("WANDB_MODE") == "disabled" or not is_main_process():
        return loggers
    mode = os.environ.get("WANDB_MODE", "offline")
    for attempt in dict.fromkeys((mode, "offline")):
        offline = attempt == "offline"
        try:
            return [*loggers, _wandb_logger(recipe, context, attempt)]
        except Exception as error:  # wandb fails in many ways, and none may cost a run
            reason = first_line(error)
            where = f"metrics go to {context.folder / METRICS_FILE} only" if offline else "it goes on offline"
            say(f"warning: wandb does not start ({reason}); {where}")
            _end_service()
    return loggers


def _wandb_logger(recipe: Recipe, context: StageContext, mode: str) -> Logger:
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
    run_id = _run_id(context.folder)
    logger = StepWandbLogger(
        csv=context.folder / METRICS_FILE,
        held=_last_step_held(context.run_dir, run_id),
        name=f"{recipe.name}/{context.stage}",
        version=run_id,
        project=recipe.tracking.project,
        entity=recipe.tracking.entity,
        group=recipe.name,
        job_type=context.stage,
        save_dir=str(context.run_dir),
        mode=mode,
        settings=_settings(wandb, mode),
    )
    # Lightning passes an option that wandb has dropped, and wandb prints a warning about it.
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)
    logger.log_hyperparams(asdict(recipe))
    return logger


def _settings(wandb: Any, mode: str) -> Any:
    """Settings of wandb: quiet, nothing recorded beside the metrics, and never waiting for long."""
    chosen: dict[str, Any] = {
        "silent": True, "console": "off", "x_disable_stats": True, "disable_git": True, "disable_code": True
    }  # fmt: skip
    if "WANDB_FINISH_TIMEOUT" not in os.environ and "finish_timeout" in wandb.Settings.model_fields:  # from 0.31
        chosen["finish_timeout"] = FINISH_SECONDS
    if mode != "offline" and "WANDB_INIT_TIMEOUT" not in os.environ:
        chosen["init_timeout"] = chosen["login_timeout"] = START_SECONDS
    return wandb.Settings(**chosen)


def current_id(folder: Path) -> str | None:
    """The wandb id of a stage, for its checkpoints; None if it has none.

    Args:
        folder: the stage's folder.
    """
    path = folder / ID_FILE
    return (path.read_text(encoding="utf-8").strip() or None) if path.exists() else None


def restore_id(folder: Path, run_id: str | None) -> None:
    """Go on under the id of a checkpoint, if the stage's own file of it is gone.

    Args:
        folder: the stage's folder.
        run_id: what `current_id` gave when the checkpoint was written.
    """
    if run_id and current_id(folder) is None:
        write_text(folder / ID_FILE, run_id + "\n")


def _run_id(folder: Path) -> str:
    """The stage's wandb id: the one in the file, else that of the newest checkpoint, else a new one."""
    if current_id(folder) is None and (checkpoint := latest_checkpoint(folder)) is not None:
        restore_id(folder, read(checkpoint).get(CHECKPOINT_KEY))
    restore_id(folder, uuid4().hex[:12])
    found = current_id(folder)
    assert found is not None
    return found


def _last_step_held(run_dir: Path, run_id: str) -> int:
    """The last step in the offline files that earlier lives have left, which are mended first; 0 if there is none."""
    last = 0
    for path in sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}/*.wandb")):
        try:
            wandb_log.mend(path)
            last = max(last, *_steps(path))
        except (OSError, ValueError) as error:
            say(f"warning: {path} cannot be read ({error}); wandb may get steps twice")
    return last


def _steps(path: Path) -> Iterator[int]:
    """0, and the steps of an offline file's rows."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record

    yield 0
    if path.exists():
        for data in wandb_log.records(path):
            record = Record()
            try:
                record.ParseFromString(data)
            except DecodeError as error:
                raise ValueError(f"no record of wandb's ({error})") from error
            if record.WhichOneof("record_type") == "history":
                yield int(record.history.step.num)


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
            continue
        if samples and isinstance(logger, CsvLogger):  # before the row, which tells that all of the step is done
            _write_samples(samples, logger.path.parent / SAMPLES_FOLDER / f"completions_{step:05d}.jsonl")
        logger.log_metrics(dict(metrics), step)


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
        except Exception as error:
            say(f"warning: wandb did not end in good order ({error})")
        _end_service()
    while _environment_set:
        os.environ.pop(_environment_set.pop(), None)


def _end_service() -> None:
    """End wandb's own process: a second run with the same id in it can lose its rows, or is refused."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        try:
            wandb.teardown()
        except Exception as error:
            say(f"warning: wandb did not end in good order ({error})")
