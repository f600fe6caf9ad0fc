"""Tracking: the CSV file, and the real offline file that wandb writes."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cogalign.recipe import Recipe, TrackingSettings
from cogalign.training.context import StageContext
from cogalign.training.tracking import (
    CsvLogger,
    StepWandbLogger,
    build_loggers,
    current_id,
    finish_tracking,
    log_step,
    restore_id,
)
from tests.training.tiny_training import signal_at, train
from tests.wandb_files import config_of_file, history_rows, offline_files, rows_of_file
from tests.wandb_server import run_id_of, sync, wandb_server

ROOT = Path(__file__).resolve().parents[2]


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
    (path,) = offline_files(tmp_path / "run")
    rows = rows_of_file(path)
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


def live(context: StageContext, first: int, last: int, die: bool = False, owed: bool = False) -> str:
    """One life of a stage in a process of its own: log steps, then end in good order or be killed; its wandb id.

    With `owed` it begins with the validation of the step before the first.
    """
    code = """
import os, signal, sys
from pathlib import Path
from cogalign.recipe import Recipe
from cogalign.training.context import StageContext
from cogalign.training.tracking import build_loggers, finish_tracking, log_step
folder, first, last, die = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "die"
context = StageContext(Recipe(name="tracked", out=str(folder)), folder, "grpo")
loggers = build_loggers(context.recipe, context)
print(loggers[1].experiment.id, loggers[1].experiment.group, flush=True)
if sys.argv[5] == "owed":
    loggers[0].go_on_after(first - 1)
    log_step(loggers, {"eval_loss": (first - 1) / 4}, first - 1)
for step in range(first, last + 1):
    log_step(loggers, {"loss": step / 8, **{f"metric {name}": step for name in range(40)}}, step)
    if step % 5 == 0:
        log_step(loggers, {"eval_loss": step / 4}, step)
if die:
    os.killpg(0, signal.SIGKILL)  # wandb's process too, as when a node fails
finish_tracking()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(context.run_dir), str(first), str(last), "die" if die else "end",
         "owed" if owed else ""],
        cwd=ROOT, capture_output=True, text=True, timeout=240, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if die else 0), done.stderr
    found, group = done.stdout.split()
    assert group == "tracked"
    return found


def assert_each_step_once(context: StageContext, last: int) -> None:
    rows = history_rows(context.run_dir, current_id(context.folder))
    assert [row["_step"] for row in rows] == list(range(1, last + 1))
    assert [row["trainer/global_step"] for row in rows] == list(range(1, last + 1))
    assert [row["loss"] for row in rows] == [step / 8 for step in range(1, last + 1)]
    assert [row.get("eval_loss") for row in rows] == [step / 4 if step % 5 == 0 else None
                                                      for step in range(1, last + 1)]  # fmt: skip
    assert [row["step"] for row in rows_of(context.folder / "metrics.csv")] == [str(n) for n in range(1, last + 1)]


def test_a_run_that_goes_on_keeps_its_id_and_its_steps_and_stays_in_the_run_folder(
    tmp_path: Path, offline: None
) -> None:
    context = context_of(tmp_path / "run")
    ids = {live(context, 1, 7), live(context, 8, 11)}
    assert ids == {(context.folder / "wandb_id.txt").read_text().strip()}
    first, second = offline_files(context.run_dir)
    assert [row["_step"] for row in rows_of_file(first)] == list(range(1, 8))
    assert [row["_step"] for row in rows_of_file(second)] == list(range(8, 12))
    assert_each_step_once(context, 11)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"grpo", "wandb"}


def test_a_validation_made_up_for_goes_into_the_row_of_its_step(tmp_path: Path, offline: None) -> None:
    context = context_of(tmp_path / "run")
    live(context, 1, 10, die=True)
    live(context, 11, 12, owed=True)
    assert_each_step_once(context, 12)


@pytest.mark.parametrize("last", [12, 90], ids=["before the first block is on disk", "after some blocks"])
def test_a_killed_run_that_goes_on_holds_each_step_once(tmp_path: Path, offline: None, last: int) -> None:
    """wandb's file misses the newest rows, some before the checkpoint, or has some that come again after it."""
    context = context_of(tmp_path / "run")
    live(context, 1, last, die=True)
    left = [row["_step"] for path in offline_files(context.run_dir) for row in rows_of_file(path)]
    assert len(left) < last  # else this test shows nothing
    checkpoint = min(last - 2, 10)
    assert not left if last == 12 else len(left) > checkpoint
    live(context, checkpoint + 1, last + 3)
    assert_each_step_once(context, last + 3)
    with wandb_server() as server:
        said = sync(server, context.run_dir)
        assert server.steps(run_id_of(said)) == list(range(1, last + 4)), said


def test_a_damaged_offline_file_is_a_warning(tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]) -> None:
    context = context_of(tmp_path / "run")
    restore_id(context.folder, "abc")
    old = context.run_dir / "wandb" / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"something else")
    loggers = build_loggers(context.recipe, context)
    log_step(loggers, {"loss": 0.5}, 1)
    assert f"warning: {old} cannot be read" in capsys.readouterr().err
    assert len(loggers) == 2
    assert old.read_bytes() == b"something else"


def test_the_id_is_that_of_the_checkpoint_if_its_file_is_gone(tmp_path: Path, offline: None) -> None:
    from cogalign.training.interrupt import Interrupted

    context = context_of(tmp_path / "run")
    restore_id(context.folder, "from-the-first-life")
    with pytest.raises(Interrupted):
        train(context.folder, at_step=signal_at(3))
    (context.folder / "wandb_id.txt").unlink()
    assert current_id(context.folder) is None
    loggers = build_loggers(context.recipe, context)
    assert loggers[1].version == current_id(context.folder) == "from-the-first-life"


def test_an_id_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    assert current_id(tmp_path) is None
    restore_id(tmp_path, None)
    restore_id(tmp_path, "")
    assert current_id(tmp_path) is None
    restore_id(tmp_path, "one")
    restore_id(tmp_path, "two")
    assert current_id(tmp_path) == "one"


def test_another_rank_starts_no_wandb_and_writes_no_id(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    context = context_of(tmp_path)
    assert [type(logger) for logger in build_loggers(context.recipe, context)] == [CsvLogger]
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_told_the_recipe_and_no_secret(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe names the variable of an API key; its value stands in none of wandb's files."""
    secrets = {"OPENAI_API_KEY": "sk-very-secret", "WANDB_API_KEY": "c0ffee" * 7}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    context = context_of(tmp_path)
    build_loggers(context.recipe, context)
    finish_tracking()
    (path,) = offline_files(tmp_path)
    config = config_of_file(path)
    assert config["seed"] == context.recipe.seed
    assert "OPENAI_API_KEY" in json.dumps(config)
    for file in (tmp_path / "wandb").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert not [name for name, value in secrets.items() if value.encode() in content], file


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
