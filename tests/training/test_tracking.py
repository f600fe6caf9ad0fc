"""Tracking: the CSV file, and the real offline file that wandb writes."""

from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.recipe import Recipe, TrackingSettings
from cogalign.training.context import StageContext
from cogalign.training.tracking import CsvLogger, StepWandbLogger, build_loggers, finish_tracking, log_step

BLOCK = 32_768


def wandb_records(path: Path) -> Iterator[bytes]:
    """Records of a `.wandb` file: blocks of 32 KiB; crc32, length and type before each piece of a record."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, parts = 7, []
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        crc, length, kind = struct.unpack_from("<IHB", content, place)
        if kind == 0 and length == 0:
            return
        data = content[place + 7 : place + 7 + length]
        assert crc == crc32(content[place + 6 : place + 7] + data)
        place += 7 + length
        parts.append(data)
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def history(path: Path) -> list[dict[str, Any]]:
    """The history rows of a `.wandb` file; the key `_step` is the record's own step."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in wandb_records(path):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({**row, "_step": record.history.step.num})
    return rows


def context_of(folder: Path, **tracking: Any) -> StageContext:
    recipe = Recipe(name="tracked", out=str(folder), tracking=TrackingSettings(**tracking))
    return StageContext(recipe, folder, "grpo")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield
    finish_tracking()


def test_wandb_gets_one_row_a_step_with_the_table_in_the_same_row(tmp_path: Path, offline: None) -> None:
    context = context_of(tmp_path / "run")
    loggers = build_loggers(context.recipe, context)
    assert [type(logger) for logger in loggers] == [CsvLogger, StepWandbLogger]
    for step in range(1, 6):
        samples = [{"image": Image.new("RGB", (8, 8)), "completion": "Polyp", "reward": 2.0}] if step == 3 else None
        log_step(loggers, {"reward": step / 10, "kl": 0.0}, step, samples)
    finish_tracking()
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    rows = history(path)
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["trainer/global_step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["reward"] for row in rows] == [0.1, 0.2, 0.3, 0.4, 0.5]
    with_table = [row["_step"] for row in rows if "completions" in row or "completions._type" in row]
    with_images = [row["_step"] for row in rows if "samples" in row or "samples._type" in row]
    assert with_table == with_images == [3]
    table = next(json.loads(found.read_text()) for found in path.parent.rglob("completions*.table.json"))
    assert table["columns"] == ["image", "completion", "reward"]
    assert table["data"][0][1:] == ["Polyp", 2.0]
    assert [row["step"] for row in rows_of(context.folder / "metrics.csv")] == ["1", "2", "3", "4", "5"]
    written = (context.folder / "completions" / "completions_00003.jsonl").read_text()
    assert json.loads(written) == {"completion": "Polyp", "reward": 2.0}


def test_wandb_keeps_its_id_over_a_resume_and_stays_in_the_run_folder(tmp_path: Path, offline: None) -> None:
    context = context_of(tmp_path / "run")
    ids = []
    for first in (1, 3):
        loggers = build_loggers(context.recipe, context)
        for step in (first, first + 1):
            log_step(loggers, {"loss": 1.0}, step)
        ids.append(loggers[1].experiment.id)
        assert loggers[1].experiment.group == "tracked"
        finish_tracking()
    assert ids[0] == ids[1] == (context.folder / "wandb_id.txt").read_text().strip()
    steps = sorted(
        row["_step"] for path in (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb") for row in history(path)
    )
    assert steps == [1, 2, 3, 4]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"grpo", "wandb"}


def test_without_wandb_the_csv_file_is_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offline: None
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    context = context_of(tmp_path)
    loggers = build_loggers(context.recipe, context)
    log_step(loggers, {"loss": 0.5}, 1)
    assert len(loggers) == 1
    assert "warning: wandb does not start" in capsys.readouterr().err
    assert rows_of(context.folder / "metrics.csv") == [{"step": "1", "loss": "0.5"}]


def test_a_wandb_that_fails_to_start_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offline: None
) -> None:
    import wandb

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", broken)
    context = context_of(tmp_path)
    assert len(build_loggers(context.recipe, context)) == 1
    assert "warning: wandb does not start (no service)" in capsys.readouterr().err


def test_wandb_can_be_switched_off(tmp_path: Path) -> None:
    context = context_of(tmp_path, wandb=False)
    assert [type(logger) for logger in build_loggers(context.recipe, context)] == [CsvLogger]


def test_a_resumed_csv_file_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = CsvLogger(path)
    for step in (1, 2, 3, 4):
        first.log_metrics({"loss": step * 1.5}, step)
    again = CsvLogger(path)  # goes on after the checkpoint of step 2
    for step in (3, 4, 5):
        again.log_metrics({"loss": step * 10}, step)
    assert [(row["step"], row["loss"]) for row in rows_of(path)] == [
        ("1", "1.5"), ("2", "3"), ("3", "30"), ("4", "40"), ("5", "50"),
    ]  # fmt: skip


def test_later_metrics_of_a_step_go_into_its_row_and_new_names_become_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log_metrics({"loss": 1}, 1)
    logger.log_metrics({"loss": 2}, 2)
    logger.log_metrics({"eval_loss": 0.25, "epoch": 0}, 2)
    logger.log_metrics({"loss": 3}, 3)
    assert rows_of(path) == [
        {"step": "1", "loss": "1", "eval_loss": ""},
        {"step": "2", "loss": "2", "eval_loss": "0.25"},
        {"step": "3", "loss": "3", "eval_loss": ""},
    ]


def test_a_row_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    CsvLogger(path).log_metrics({"loss": 0.125}, 2)
    assert rows_of(path) == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": "0.125"}]


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=8))
def test_numbers_come_back_exactly(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    logger = CsvLogger(path)
    for step, value in enumerate(values):
        logger.log_metrics({"value": value}, step)
    assert [float(row["value"]) for row in rows_of(path)] == values
