"""The CSV file of metrics: exact over restarts, and no slower after many steps."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.training import metrics_file
from cogalign.training.metrics_file import CsvLogger, read_rows


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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


def test_a_file_that_goes_on_after_a_checkpoint_keeps_its_row_and_adds_to_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = CsvLogger(path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": step}, step)
    again = CsvLogger(path)
    again.go_on_after(2)
    assert [row["step"] for row in rows_of(path)] == ["1", "2"]
    again.log_metrics({"eval_loss": 0.5}, 2)
    again.log_metrics({"loss": 9}, 3)
    assert [(row["step"], row["loss"], row["eval_loss"]) for row in rows_of(path)] == [
        ("1", "1", ""), ("2", "2", "0.5"), ("3", "9", ""),
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


def test_a_row_that_grows_is_written_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation every few steps must not write the whole file anew: that takes time with the square of the steps."""
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log_metrics({"loss": 1, "eval_loss": 0.5}, 1)
    written: list[Path] = []
    real = metrics_file.write_text
    monkeypatch.setattr(metrics_file, "write_text", lambda path, text: (written.append(path), real(path, text)))
    for step in range(2, 200):
        logger.log_metrics({"loss": step}, step)
        if step % 10 == 0:
            logger.log_metrics({"eval_loss": step / 100}, step)
    assert written == []
    rows = rows_of(path)
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 200)]
    assert [row["eval_loss"] for row in rows[9::10]] == [repr(step / 100) if step % 100 else str(step // 100)
                                                         for step in range(10, 200, 10)]  # fmt: skip


def test_a_row_that_shrinks_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log_metrics({"loss": 1}, 1)
    logger.log_metrics({"loss": 0.123456789}, 2)
    logger.log_metrics({"loss": 2}, 2)
    logger.log_metrics({"loss": 3}, 3)
    assert path.read_text() == "step,loss\n1,1\n2,2\n3,3\n"


def test_metrics_of_no_step_belong_to_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    CsvLogger(path).log_metrics({"loss": 1}, 7)
    again = CsvLogger(path)
    again.log_metrics({"eval_loss": 2})
    again.log_metrics({"loss": 3}, 8)
    assert rows_of(path) == [{"step": "7", "loss": "1", "eval_loss": "2"}, {"step": "8", "loss": "3", "eval_loss": ""}]


def test_a_row_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    CsvLogger(path).log_metrics({"loss": 0.125}, 2)
    assert rows_of(path) == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": "0.125"}]


def test_a_file_that_someone_has_changed_meanwhile_keeps_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log_metrics({"loss": 1}, 1)
    logger.log_metrics({"loss": 2}, 2)
    path.write_text("step,loss\n1,1\n2,2.5\n")  # an editor
    logger.log_metrics({"loss": 2.25}, 2)
    assert rows_of(path) == [{"step": "1", "loss": "1"}, {"step": "2", "loss": "2.25"}]


Calls = list[tuple[int, dict[str, float]]]
VALUES = st.dictionaries(st.sampled_from("abcd"), st.floats(allow_nan=False), min_size=1)
STEPS = st.lists(st.tuples(st.integers(0, 2), VALUES), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(lives=st.lists(STEPS, min_size=1, max_size=3))
def test_the_file_is_what_was_logged_last_for_each_step(
    lives: list[Calls], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Random steps, repeated steps and restarts, against a dictionary."""
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    wanted: dict[int, dict[str, float]] = {}
    step = 0
    for number, calls in enumerate(lives):
        logger = CsvLogger(path)
        step = max(0, step - 2) if number else 0  # each life goes on a little before the end of the one before
        for place, (advance, values) in enumerate(calls):
            step += advance
            if place == 0:
                wanted = {known: row for known, row in wanted.items() if known < step}
            logger.log_metrics(values, step)
            wanted.setdefault(step, {}).update(values)
    _, rows = read_rows(path)
    found = {int(row["step"]): {name: float(text) for name, text in row.items() if name != "step"} for row in rows}
    assert found == wanted
    assert len(rows) == len(wanted)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=8))
def test_numbers_come_back_exactly(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    logger = CsvLogger(path)
    for step, value in enumerate(values):
        logger.log_metrics({"value": value}, step)
    assert [float(row["value"]) for row in rows_of(path)] == values
