"""What wandb's offline files hold, for tests: `history_rows(run_dir, run_id)` reads all lives of a stage in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cogalign.training.wandb_log import records


def offline_files(run_dir: Path, run_id: str | None = None) -> list[Path]:
    """The `.wandb` files below `<run_dir>/wandb`, in the order in which the lives of the stage began.

    Args:
        run_dir: folder of the run.
        run_id: content of a stage's `wandb_id.txt`; None if the run has one id only.

    Raises:
        ValueError: there are files of several ids, and none was named.
    """
    found = sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id or '*'}/*.wandb"))
    ids = {path.stem.removeprefix("run-") for path in found}
    if len(ids) > 1:
        raise ValueError(f"{run_dir / 'wandb'}: found runs {', '.join(sorted(ids))}; name one")
    return found


def history_rows(run_dir: Path, run_id: str | None = None) -> list[dict[str, Any]]:
    """All rows that a stage has logged to wandb offline, over all its lives; `_step` is the record's own step.

    Args:
        run_dir: folder of the run.
        run_id: content of a stage's `wandb_id.txt`; None if the run has one id only.

    Returns:
        One dictionary a row, in the order of the files; names of nested values are joined with a point.

    Raises:
        ValueError: there are files of several ids, and none was named.
    """
    return [row for path in offline_files(run_dir, run_id) for row in rows_of_file(path)]


def rows_of_file(path: Path) -> list[dict[str, Any]]:
    """The rows of one `.wandb` file."""
    rows = []
    for record in _parsed(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.append({**row, "_step": record.history.step.num})
    return rows


def config_of_file(path: Path) -> dict[str, Any]:
    """The run's config as one `.wandb` file has it."""
    found: dict[str, Any] = {}
    for record in _parsed(path):
        kind = record.WhichOneof("record_type")
        config = record.run.config if kind == "run" else record.config if kind == "config" else None
        for item in config.update if config is not None else ():
            found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


def _parsed(path: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(data) for data in records(path)]
